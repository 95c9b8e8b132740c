"""One architecture, pruned by one tool at one or more ratios; writes rows as JSON. ``coverage.py`` starts it.

    python benchmarks/coverage_worker.py {edgeopt|torch_pruning} NAME OUT.json

The last line of a failure's traceback is a row's reason. No ONNX Runtime session is in this process.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
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

from benchmarks.zoo import ARCHITECTURES
from benchmarks.zoo.architecture import Architecture
from benchmarks.zoo.hugging_face import HUGGING_FACE
from edgeopt.bench.outputs import read_batches, run_model, write_batches
from edgeopt.config.profiles import load_profile
from edgeopt.device.open import open_device
from edgeopt.errors import EdgeoptError, ParityError, StepError
from edgeopt.export.parity import compare_arrays
from edgeopt.export.to_onnx import export
from edgeopt.passes.network import Network
from edgeopt.passes.prune.analysis import Groups, analyse
from edgeopt.passes.prune.importance import importance, strongest
from edgeopt.passes.prune.proof import verify
from edgeopt.passes.prune.rewrite import prune
from edgeopt.passes.prune.table import group_table
from edgeopt.records.recipe import Importance

RATIOS = (0.3, 0.5)
PARITY_TOLERANCE = 1e-3
"""On the largest difference over an output's largest value; right exports are within 1e-4, wrong ones beyond 0.1."""
MAX_MEMORY_BYTES = 10 * 2**30
"""Of address space; a tool that needs more on networks this small counts as failed."""
FAULTS = 5
"""Slots in which one index is planted wrong, for each architecture."""
FAULT_BATCH = 8
CALIBRATION_BATCH = 4

Row = dict[str, Any]
OUTPUT_DIMENSIONS: tuple[tuple[type[nn.Module], int], ...] = (
    (nn.modules.conv._ConvTransposeNd, 1),
    (nn.Embedding, 1),
    (nn.Module, 0),
)


def channel_slots(model: nn.Module, outputs: tuple[str, ...]) -> dict[tuple[str, ...], int]:
    """Map each weight (all of its names) to its dimension of output channels, without those that cannot go."""
    modules = dict(model.named_modules())
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim > 1:
            names.setdefault(id(parameter), []).append(name)
    slots = {}
    for same in names.values():
        owner = modules[same[0].rpartition(".")[0]]
        if same[0].endswith("weight") or isinstance(owner, (nn.RNNBase, nn.MultiheadAttention)):
            fixed = any(same[0].startswith(f"{name}.") for name in outputs)
        elif "parametrizations.weight.original1" in same[0]:
            fixed = False
        else:
            continue  # position tables and tokens are no layers
        if not fixed:
            transposed = type(owner).__name__ == "Conv1D"  # of GPT-2
            slots[tuple(same)] = next(
                dim for kind, dim in ((type(owner), 1),) * transposed + OUTPUT_DIMENSIONS if isinstance(owner, kind)
            )
    return slots


def channels(slots: Mapping[tuple[str, ...], int], shapes: Mapping[str, torch.Size]) -> int:
    """Count output channels of all layers."""
    return sum(
        shapes[next(name for name in names if name in shapes)][dim]
        for names, dim in slots.items()
        if any(name in shapes for name in names)
    )


def built(architecture: Architecture) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Build a network that looks trained: no tensor of one value, batch norms that know their inputs.

    As initialised, signals die out in deep networks, and the output is the last bias: errors would not show.
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
        model(*(random_like(x, CALIBRATION_BATCH) for x in inputs))
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.momentum = 0.1
    return model.eval(), inputs


def random_like(example: Tensor, batch: int) -> Tensor:
    """Return random inputs like an example: numbers, or indices that it may have."""
    shape = (batch, *example.shape[1:])
    return torch.randn(shape) if example.is_floating_point() else torch.randint(int(example.max()) + 1, shape)


def macs(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Count multiply-accumulates of one batch, attention included."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops() / 2


def tensors_in(outputs: Any) -> list[Tensor]:
    """Flatten a model's outputs."""
    if isinstance(outputs, Tensor):
        return [outputs]
    items = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for item in items for tensor in tensors_in(item)]


def trains(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Take one step; return what is wrong, or nothing."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    loss = sum(output.square().mean() for output in tensors_in(module(*inputs)) if output.is_floating_point())
    assert isinstance(loss, Tensor), "a model has an output of numbers"
    loss.backward()
    if not torch.isfinite(loss):
        return "the loss is not finite"
    if not any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in parameters):
        return "no parameter has a gradient"
    torch.optim.SGD(parameters, lr=1e-4).step()
    return ""


def exports(module: nn.Module, inputs: tuple[Tensor, ...]) -> Row:
    """Export, run the file in a process of its own, and compare; torch's exporters in turn."""
    with torch.no_grad():
        expected = [output.numpy() for output in tensors_in(module(*inputs))]
    names = [f"input_{index}" for index in range(len(inputs))]
    reasons = []
    for exporter in ("torchscript", "dynamo"):
        with tempfile.TemporaryDirectory() as folder:
            file, data, out = (Path(folder) / name for name in ("model.onnx", "in.npz", "out.npz"))
            try:
                export(
                    module, inputs, file, exporter=exporter, input_names=names,
                    output_names=[f"output_{index}" for index in range(len(expected))], max_opset=20, max_ir=10,
                )  # fmt: skip
                write_batches(data, [{name: value.numpy() for name, value in zip(names, inputs, strict=True)}])
                run_model(file, data, out, open_device("local:"), load_profile("phone"))
                found = list(read_batches(out)[0].values())
                parity = compare_arrays(expected, found, stage="exported", tolerance=PARITY_TOLERANCE)
            except EdgeoptError as error:
                reasons.append(f"{exporter}: {str(error)[:300]}")
                continue
            return {"exporter": exporter, "onnx_parity": parity.max_rel_error, "export_refusal": "; ".join(reasons)}
    return {"exporter": None, "onnx_parity": None, "export_refusal": "; ".join(reasons)}


def prune_with_edgeopt(architecture: Architecture) -> tuple[Row, list[Row]]:
    """Trace and analyse once, prune at each ratio."""
    model, inputs = built(architecture)
    start = time.perf_counter()
    network = Network.trace(model, inputs)
    traced = time.perf_counter()
    groups = analyse(network)
    analysed = time.perf_counter()
    scores = importance(network, groups, Importance(method="l2", normalization="mean"))
    table = group_table(network, groups, scores)
    slots = channel_slots(model, architecture.outputs)
    shapes = {name: tensor.shape for name, tensor in network.state().items()}
    total = channels(slots, shapes)
    parameters, whole_macs = table.parameters({}), macs(network.eval_module, network.example_inputs)
    frozen = sorted({str(group.frozen_by) for group in groups.groups.values() if group.frozen_by is not None})
    common = {
        "parameters": parameters, "macs": whole_macs / network.example_inputs[0].shape[0], "channels": total,
        "trace_seconds": traced - start, "analysis_seconds": analysed - traced,
        "groups": len(groups.groups), "free_groups": len(groups.free), "blocked_by": list(groups.without_rule),
        "frozen": frozen, "notes": list(network.notes),
    }  # fmt: skip
    smallest = {name: [0] for name in groups.free}
    fewest = channels(slots, {name: t.shape for name, t in prune(network, groups, smallest).state().items()})
    common["prunable_ratio"] = 1 - fewest / total
    rows = []
    for ratio in RATIOS:
        widths = {n: max(1, math.floor(g.channels * (1 - ratio) + 1e-9)) for n, g in groups.free.items()}
        keep = strongest(scores, widths)
        pruned = prune(network, groups, keep)
        row = _reached(slots, shapes, {n: t.shape for n, t in pruned.state().items()}, ratio)
        row |= {
            "parameters_left_ratio": table.parameters(widths) / parameters,
            "parameters_as_predicted": sum(p.numel() for p in pruned.parameters().values()) == table.parameters(widths),
            "macs_left_ratio": macs(pruned.eval_module, pruned.example_inputs) / whole_macs,
        }
        try:
            row["proof_error"] = verify(network, groups, keep, pruned, network.example_inputs)
        except ParityError as error:
            row |= {"proof_error": None, "proof_refusal": str(error)}
        row |= exports(pruned.eval_module, pruned.example_inputs)
        row["training_refusal"] = trains(pruned.train_module, pruned.example_inputs)
        rows.append(row)
    common |= planted_faults(network, groups, keep)
    return common, rows


def _reached(
    slots: Mapping[tuple[str, ...], int],
    before: Mapping[str, torch.Size],
    after: Mapping[str, torch.Size],
    ratio: float,
) -> Row:
    total = channels(slots, before)
    removed = 1 - channels(slots, after) / total
    return {"asked_ratio": ratio, "removed_ratio": removed, "reached": removed / ratio}


def planted_faults(network: Network, groups: Groups, keep: Mapping[str, list[int]]) -> Row:
    """Let a kept and a lost channel own each other's index in one slot, and see whether the proof notices."""
    inputs = tuple(random_like(x, FAULT_BATCH) for x in network.example_inputs)
    if network.notes:
        inputs = network.example_inputs
    places = [(n, s) for n, g in groups.free.items() if len(keep[n]) < g.channels for s in g.slots]
    chosen = places[:: max(1, len(places) // FAULTS)][:FAULTS]
    missed = []
    for name, slot in chosen:
        group = groups.groups[name]
        lost = np.setdiff1d(np.arange(group.channels), keep[name])
        one, other = sorted(keep[name])[len(keep[name]) // 2], lost[len(lost) // 2]
        indices = group.slots[slot].copy()
        indices[[one, other]] = indices[[other, one]]
        faulty = dataclasses.replace(group, slots={**group.slots, slot: indices})
        wrong = dataclasses.replace(groups, groups={**groups.groups, name: faulty})
        try:
            verify(network, wrong, keep, prune(network, wrong, keep), inputs)
        except StepError:  # refused at once, or caught by the proof
            continue
        missed.append(f"{name} at {slot}")
    return {"planted_faults": len(chosen), "missed_faults": missed}


def prune_with_torch_pruning(architecture: Architecture) -> tuple[Row, list[Row]]:
    """Prune as its documentation says: example inputs, magnitudes, one ratio, the output layers ignored.

    Its mapping is not checked (it offers no proof): where it runs with outputs of the right shape, it counts as exact.
    """
    import torch_pruning as tp

    original, inputs = built(architecture)
    inputs = tuple(x if len(x) > 1 else torch.cat([x, x]) for x in inputs)
    slots = channel_slots(original, architecture.outputs)
    shapes = {name: parameter.shape for name, parameter in original.named_parameters()}
    parameters, whole_macs = sum(p.numel() for p in original.parameters()), macs(original, inputs)
    with torch.no_grad():
        expected = [output.shape for output in tensors_in(original(*inputs))]
    common: Row = {"parameters": parameters, "channels": channels(slots, shapes)}
    rows = []
    for ratio in RATIOS:
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
            row |= _reached(slots, shapes, {n: p.shape for n, p in model.named_parameters()}, ratio)
            row["parameters_left_ratio"] = sum(p.numel() for p in model.parameters()) / parameters
            with torch.no_grad():
                found = [output.shape for output in tensors_in(model(*inputs))]
            row["outputs_keep_their_shape"] = found == expected
            row["macs_left_ratio"] = macs(model, inputs) / whole_macs
            row |= exports(model, inputs)
            row["training_refusal"] = trains(model.train(), inputs)
        except Exception as error:  # noqa: BLE001 - whatever the peer raises is its row's reason
            row["failure"] = _last_line(error)
    return common, rows


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()[:400]


TOOLS: dict[str, Callable[[Architecture], tuple[Row, list[Row]]]] = {
    "edgeopt": prune_with_edgeopt,
    "torch_pruning": prune_with_torch_pruning,
}


def main() -> None:
    """Run one tool on one architecture."""
    tool, name, out = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    architecture = {**ARCHITECTURES, **HUGGING_FACE}[name]
    common, rows = TOOLS[tool](architecture)
    Path(out).write_text(json.dumps({"common": common, "rows": rows}))


if __name__ == "__main__":
    main()
