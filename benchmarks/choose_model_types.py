"""Apply the rule of ``benchmarks/zoo/model_types.py``, and write the model types taken and the reasons for the others.

pip install '.[bench]'
python benchmarks/choose_model_types.py [--json OUT]
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.zoo import model_types

SECONDS = 60
MAX_MEMORY_BYTES = 8 * 2**30


def find_reason(model_type: str) -> str:
    """Make a network in a forked process; return why that failed, or an empty string."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        try:
            torch.manual_seed(0)
            model_types.build(model_type)
            reason = "none"
        except Exception as error:  # noqa: BLE001 - any error is the reason why the type is skipped
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        os.write(writer, reason.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        reason = answer.read()
    os.waitpid(child, 0)
    return "" if reason == "none" else reason or f"not made within {SECONDS} s and {MAX_MEMORY_BYTES // 2**30} GiB"


@click.command()
@click.option("--json", "out", type=click.Path(path_type=Path), default=model_types.CHOICE)
def main(out: Path) -> None:
    """Print a line for each model type and write the choice."""
    import transformers  # noqa: F401 - imported once, before the processes fork
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    reasons = {}
    for model_type in sorted(MODEL_MAPPING_NAMES)[:: model_types.STRIDE]:
        reasons[model_type] = find_reason(model_type)
        print(f"{model_type:40} {reasons[model_type] or 'taken'}", flush=True)
    choice = {
        "transformers": version("transformers"),
        "torch": version("torch"),
        "taken": [name for name, reason in reasons.items() if not reason],
        "skipped": {name: reason for name, reason in reasons.items() if reason},
    }
    out.write_text(json.dumps(choice, indent=1) + "\n")


if __name__ == "__main__":
    main()
