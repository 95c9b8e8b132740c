"""Prune one architecture with one tool at every ratio, and write the rows as JSON. ``coverage.py`` calls ``run``.

    python benchmarks/coverage_worker.py {edgeopt|torch_pruning} NAME OUT.json

If it fails, the last line of the traceback is the reason; this command shows the whole. The process has no ONNX Runtime
session.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.independent_check import BATCH_SIZE, CHECKED, compare_with_module
from benchmarks.zoo.architecture import Architecture
from benchmarks.zoo.every import EVERY
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.bench.run_target import RunTarget
from edgeopt.config.profiles import load_profile
from edgeopt.device.local import LocalDevice
from edgeopt.errors import EdgeoptError, ParityError, StepError
from edgeopt.export.parity import compare_arrays
from edgeopt.export.to_onnx import export
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups, analyse
from edgeopt.passes.prune.importance import choose_strongest, score_channels
from edgeopt.passes.prune.proof import verify_pruning
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import build_group_table
from edgeopt.records.recipe import Importance

PRUNING_RATIOS = (0.3, 0.5)
"""Channels to remove."""
PARITY_TOLERANCE = 1e-3
"""Largest difference over an output's largest value; correct exports stay within 1e-4, wrong ones exceed 0.1."""
MAX_MEMORY_BYTES = 10 * 2**30
"""Of address space; a tool that needs more for networks this small counts as failed."""
MAX_FAULTS = 4
"""Slots with a planted wrong index, for each architecture: 500 over all."""
CALIBRATION_BATCH_SIZE = 4

Row = dict[str, Any]
TORCH_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
COMPUTED_WEIGHT = r"\.(parametrizations\.weight\.original1?|weight_v|weight_orig)$"
"""Weight norm and spectral norm keep the weight under these names."""
OUTPUT_DIMENSIONS: tuple[tuple[type[nn.Module], int], ...] = (
    (nn.modules.conv._ConvTransposeNd, 1),
    (nn.Embedding, 1),
    (nn.EmbeddingBag, 1),
    (nn.Module, 0),
)


def find_channel_slots(model: nn.Module, outputs: tuple[str, ...]) -> dict[tuple[str, ...], int]:
    """Map all names of each weight to its dimension of output channels, without the layers in ``outputs``.

    A weight is that of a torch layer (also one that is computed: weight norm and spectral norm), or a matrix of that
    name in a layer of the network's own. Position tables, tokens and stacked experts are not layers.
    """
    modules = dict(model.named_modules())
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim > 1:
            names.setdefault(id(parameter), []).append(name)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    slots = {}
    for aliases in names.values():
        layer_name, _, own_name = re.sub(COMPUTED_WEIGHT, ".weight", aliases[0]).rpartition(".")
        layer = modules[layer_name]
        if own_name == "weight":
            is_weight = isinstance(layer, TORCH_LAYERS) or len(shapes[aliases[0]]) == 2
        else:
            is_weight = isinstance(layer, (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention))
        if is_weight and not any(f"{layer_name}.".startswith(f"{name}.") for name in outputs):
            transposed = type(layer).__name__ == "Conv1D"  # GPT-2's
            slots[tuple(aliases)] = next(
                dim for kind, dim in ((type(layer), 1),) * transposed + OUTPUT_DIMENSIONS if isinstance(layer, kind)
            )
    return slots


def count_channels(slots: Mapping[tuple[str, ...], int], shapes: Mapping[str, torch.Size]) -> int:
    """Count the output channels of all layers."""
    return sum(
        shapes[next(name for name in names if name in shapes)][dim]
        for names, dim in slots.items()
        if any(name in shapes for name in names)
    )


def build_network(architecture: Architecture) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build a network that looks trained: no tensor has only one value, and batch norms have their inputs' statistics.

    With its initial values, signals vanish in a deep network and the output is the last bias, which hides errors.
    """
    model, inputs = architecture.build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.reshape(-1)[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.eval()
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.train()
                part.momentum = None
        model(*(make_random_input(x, CALIBRATION_BATCH_SIZE) for x in inputs))
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.momentum = 0.1
    return model.eval(), inputs


def make_random_input(example: Tensor, batch_size: int) -> Tensor:
    """Return a random input like the example: floats, or indices up to its largest one."""
    shape = (batch_size, *example.shape[1:])
    return torch.randn(shape) if example.is_floating_point() else torch.randint(int(example.max()) + 1, shape)


def count_macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Count the multiply-accumulates of one batch, including attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() / 2


def flatten_outputs(outputs: Any) -> list[Tensor]:
    """Return all tensors of a model's outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    items = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for item in items for tensor in flatten_outputs(item)]


def check_training(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Take one training step; return the error, or an empty string."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    loss = sum(output.square().mean() for output in flatten_outputs(module(*inputs)) if output.is_floating_point())
    assert isinstance(loss, Tensor), "every model has a floating-point output"
    loss.backward()
    if not torch.isfinite(loss):
        return "the loss is not finite"
    if not any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters):
        return "no parameter has a gradient"
    torch.optim.SGD(parameters, lr=1e-4).step()
    return ""


def check_export(module: nn.Module, inputs: tuple[Tensor, ...]) -> Row:
    """Export, run the file in a separate process, and compare; try torch's exporters until one passes."""
    with torch.no_grad():
        expected = [output.numpy() for output in flatten_outputs(module(*inputs))]
    names = [f"input_{index}" for index in range(len(inputs))]
    reasons = []
    for exporter in ("torchscript", "dynamo"):
        with tempfile.TemporaryDirectory() as folder:
            file, data, out = (Path(folder) / name for name in ("model.onnx", "in.npz", "out.npz"))
            target = RunTarget(device=LocalDevice(), profile=load_profile("phone"), kind="stand-in")
            try:
                export(
                    module, inputs, file, exporter=exporter, input_names=names,
                    output_names=[f"output_{index}" for index in range(len(expected))], max_opset=20, max_ir=10,
                )  # fmt: skip
                write_batches(data, [{name: value.numpy() for name, value in zip(names, inputs, strict=True)}])
                run_model(file, data, out, target)
                actual = list(read_batches(out)[0].values())
                parity = compare_arrays(expected, actual, stage="exported", tolerance=PARITY_TOLERANCE)
            except EdgeoptError as error:
                reasons.append(f"{exporter}: {str(error)[:300]}")
                continue
            return {"exporter": exporter, "onnx_parity": parity.max_rel_error, "export_refusal": "; ".join(reasons)}
    return {"exporter": None, "onnx_parity": None, "export_refusal": "; ".join(reasons)}


def prune_with_edgeopt(name: str, architecture: Architecture) -> tuple[Row, list[Row]]:
    """Trace and analyse once, and prune at each ratio."""
    model, inputs = build_network(architecture)
    start = time.perf_counter()
    network = Network.trace(model, inputs)
    traced = time.perf_counter()
    groups = analyse(network)
    analysed = time.perf_counter()
    scores = score_channels(network, groups, Importance(method="l2", normalization="mean"))
    table = build_group_table(network, groups, scores)
    slots = find_channel_slots(model, architecture.outputs)
    shapes = {name: tensor.shape for name, tensor in network.state().items()}
    total = count_channels(slots, shapes)
    parameters, macs = table.parameters({}), count_macs(network.eval_module, network.example_inputs)
    frozen = sorted({str(group.frozen_by) for group in groups.groups.values() if group.frozen_by is not None})
    common = {
        "parameters": parameters, "macs": macs / network.example_inputs[0].shape[0], "channels": total,
        "trace_seconds": traced - start, "analysis_seconds": analysed - traced,
        "groups": len(groups.groups), "free_groups": len(groups.free), "blocked_by": list(groups.without_rule),
        "frozen": frozen, "notes": list(network.notes),
    }  # fmt: skip
    smallest = {name: list(range(group.least)) for name, group in groups.free.items()}
    fewest = count_channels(slots, {name: t.shape for name, t in prune(network, groups, smallest).state().items()})
    common["prunable_ratio"] = 1 - fewest / total
    rows = []
    for ratio in PRUNING_RATIOS:
        widths = {n: max(g.least, math.floor(g.channels * (1 - ratio) + 1e-9)) for n, g in groups.free.items()}
        keep = choose_strongest(scores, widths)
        pruned = prune(network, groups, keep)
        row = _measure_reduction(slots, shapes, {n: t.shape for n, t in pruned.state().items()}, ratio)
        row |= {
            "parameters_left_ratio": table.parameters(widths) / parameters,
            "parameters_as_predicted": sum(p.numel() for p in pruned.parameters().values()) == table.parameters(widths),
            "macs_left_ratio": count_macs(pruned.eval_module, pruned.example_inputs) / macs,
        }
        try:
            row["proof_error"] = verify_pruning(network, groups, keep, pruned, network.example_inputs)
        except ParityError as error:
            row |= {"proof_error": None, "proof_refusal": str(error)}
        if name in CHECKED and not network.notes:
            others = tuple(make_random_input(x, BATCH_SIZE) for x in network.example_inputs)
            row["independent_error"] = compare_with_module(model, groups, keep, pruned, others)
        row |= check_export(pruned.eval_module, pruned.example_inputs)
        row["training_refusal"] = check_training(pruned.train_module, pruned.example_inputs)
        rows.append(row)
    common |= plant_faults(network, groups, keep)
    return common, rows


def _measure_reduction(
    slots: Mapping[tuple[str, ...], int],
    before: Mapping[str, torch.Size],
    after: Mapping[str, torch.Size],
    ratio: float,
) -> Row:
    removed = 1 - count_channels(slots, after) / count_channels(slots, before)
    return {"asked_ratio": ratio, "removed_ratio": removed, "reached": removed / ratio}


def plant_faults(network: Network, groups: Groups, keep: Mapping[str, list[int]]) -> Row:
    """Swap the indices of a kept and a removed channel in one slot at a time, and count the faults the proof misses."""
    inputs = network.example_inputs  # the proof takes batches of their size only
    candidates = [(n, s) for n, g in groups.free.items() if len(keep[n]) < g.channels for s in g.slots]
    chosen = candidates[:: max(1, len(candidates) // MAX_FAULTS)][:MAX_FAULTS]
    missed = []
    for name, slot in chosen:
        group = groups.groups[name]
        removed = np.setdiff1d(np.arange(group.channels), keep[name])
        kept_channel, removed_channel = sorted(keep[name])[len(keep[name]) // 2], removed[len(removed) // 2]
        indices = group.slots[slot].copy()
        indices[[kept_channel, removed_channel]] = indices[[removed_channel, kept_channel]]
        faulty_group = dataclasses.replace(group, slots={**group.slots, slot: indices})
        faulty = dataclasses.replace(groups, groups={**groups.groups, name: faulty_group})
        try:
            verify_pruning(network, faulty, keep, prune(network, faulty, keep), inputs)
        except StepError:  # prune refuses it, or the proof catches it
            continue
        missed.append(f"{name} at {slot}")
    return {"planted_faults": len(chosen), "missed_faults": missed}


def prune_with_torch_pruning(_: str, architecture: Architecture) -> tuple[Row, list[Row]]:
    """Prune as torch-pruning's documentation says: example inputs, magnitudes, one ratio, the output layers ignored.

    It offers no proof, so its mapping is not checked: if it runs and keeps the outputs' shapes, it counts as exact.
    """
    import torch_pruning as tp

    original, inputs = build_network(architecture)
    inputs = tuple(x if len(x) > 1 else torch.cat([x, x]) for x in inputs)
    slots = find_channel_slots(original, architecture.outputs)
    shapes = {name: parameter.shape for name, parameter in original.named_parameters()}
    parameters, macs = sum(p.numel() for p in original.parameters()), count_macs(original, inputs)
    with torch.no_grad():
        expected = [output.shape for output in flatten_outputs(original(*inputs))]
    common: Row = {"parameters": parameters, "channels": count_channels(slots, shapes)}
    rows = []
    for ratio in PRUNING_RATIOS:
        row: Row = {"asked_ratio": ratio}
        rows.append(row)
        try:
            model = copy.deepcopy(original)
            start = time.perf_counter()
            pruner = tp.pruner.MagnitudePruner(
                model, inputs, importance=tp.importance.MagnitudeImportance(p=2), global_pruning=False,
                pruning_ratio=ratio, ignored_layers=[model.get_submodule(name) for name in architecture.outputs],
            )  # fmt: skip
            common["analysis_seconds"] = time.perf_counter() - start
            pruner.step()
            row |= _measure_reduction(slots, shapes, {n: p.shape for n, p in model.named_parameters()}, ratio)
            row["parameters_left_ratio"] = sum(p.numel() for p in model.parameters()) / parameters
            with torch.no_grad():
                actual = [output.shape for output in flatten_outputs(model(*inputs))]
            row["outputs_keep_their_shape"] = actual == expected
            row["macs_left_ratio"] = count_macs(model, inputs) / macs
            row |= check_export(model, inputs)
            row["training_refusal"] = check_training(model.train(), inputs)
        except Exception as error:  # noqa: BLE001 - any error of the other tool is the reason why it failed
            row["failure"] = _last_line(error)
    return common, rows


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:400]


TOOLS: dict[str, Callable[[str, Architecture], tuple[Row, list[Row]]]] = {
    "edgeopt": prune_with_edgeopt,
    "torch_pruning": prune_with_torch_pruning,
}


def run(tool: str, name: str, out: Path) -> None:
    """Run one tool on one architecture in this process, and write the rows, or why there are none."""
    _limit_process()
    with Path(os.devnull).open("w") as nowhere:  # exporters print whole graphs
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    try:
        common, rows = TOOLS[tool](name, EVERY[name])
        result: Row = {"failure": None, "common": common, "rows": rows}
    except Exception as error:  # noqa: BLE001 - any error is the reason why the architecture does not pass
        result = {"failure": _last_line(error), "common": {}, "rows": []}
    out.write_text(json.dumps(result))


def _limit_process() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)


def main() -> None:
    """Run one tool on one architecture; an error ends in its traceback."""
    tool, name, out = sys.argv[1:]
    _limit_process()
    common, rows = TOOLS[tool](name, EVERY[name])
    Path(out).write_text(json.dumps({"failure": None, "common": common, "rows": rows}))


if __name__ == "__main__":
    main()
