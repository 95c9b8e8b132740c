"""Tiny models and a quick profile, for tests that run real workers."""

import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
from builders import a_profile
from onnx import TensorProto, helper, numpy_helper

from edgeopt.bench.requests import runtime_request
from edgeopt.bench.run_target import RunTarget
from edgeopt.device.base import Device, WorkerRequest
from edgeopt.device.local import LocalDevice
from edgeopt.records.profile import Profile, TimingRule

QUICK = TimingRule(processes=2, warmup_runs=5, warmup_seconds=0.02, min_runs=20, min_seconds=0.05, max_seconds=5.0)


def a_quick_profile(**changes) -> Profile:
    return msgspec.structs.replace(a_profile(stand_in=False), **{"timing": QUICK, **changes})


def a_run_target(profile: Profile | None = None, device: Device | None = None, **changes) -> RunTarget:
    """Where files of tests run: here, with a quick timing rule and random inputs."""
    changes = {"kind": "measured"} | changes
    return RunTarget(device=device or LocalDevice(), profile=profile or a_quick_profile(), **changes)


def a_request(mode: str, model: Path, **changes) -> WorkerRequest:
    """What a worker is asked for about a model on such a target."""
    return msgspec.structs.replace(runtime_request(mode, model, a_run_target()), **changes)


def a_network(path: Path, *, width=64, layers=2, inputs=("N", 32), opset=17, kind=TensorProto.FLOAT) -> Path:
    """Write layers of MatMul and Relu over the last axis of the input."""
    rng = np.random.default_rng(0)
    nodes, weights, name, size = [], [], "x", inputs[-1]
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT))
        name = "float"
    for layer in range(layers):
        values = (rng.standard_normal((size, width)) / np.sqrt(size)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [name, f"w{layer}"], [f"m{layer}"]))
        last = layer == layers - 1
        name, size = ("y" if last else f"r{layer}"), width
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [name]))
    shape = list(inputs)
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:-1], width])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def a_convolution(path: Path, *, channels=64, layers=3, size=8) -> Path:
    """Write layers of 3x3 convolution and Relu over ``(N, channels, size, size)``; only static int8 applies to them."""
    rng, nodes, weights, name = np.random.default_rng(0), [], [], "x"
    for layer in range(layers):
        values = rng.standard_normal((channels, channels, 3, 3)) / np.sqrt(4.5 * channels)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{layer}"))
        nodes.append(helper.make_node("Conv", [name, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        name = "y" if layer == layers - 1 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [name]))
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["N", channels, size, size]) for end in ("x", "y")]
    graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def write_quick_target(folder: Path, **values: object) -> str:
    """Write the phone's profile with a short timing rule; return its ``--target`` for commands in ``folder``."""
    timing = {"processes": 2, "warmup_runs": 3, "warmup_seconds": 0.02, "min_runs": 20, "min_seconds": 0.05}
    text = (Path(__file__).parents[1] / "targets" / "phone.toml").read_text()
    for name, value in {"name": '"quick"', "max_score_drop": 0.2, **timing, **values}.items():
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        assert count == 1, name
    (folder / "quick.toml").write_text(text)
    return "./quick.toml"
