"""The worker: a single file that needs only the standard library, numpy and onnxruntime, so that it runs on any device.

In: one JSON line on stdin (``edgeopt.device.base.WorkerRequest``). Out: one line on stdout, ``edgeopt-worker`` and
JSON: ``{"ok": true, ...}`` or ``{"ok": false, "kind": ..., "reason": ...}``, where ``kind`` is that of a
``WorkerError``, or ``device``. In mode ``serve`` each further line of stdin is a block to run and gets one line in
return. The worker ends when stdin does, so it never outlives its parent: keep stdin open until the answer has arrived.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import importlib
import json
import os
import pkgutil
import platform
import queue
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

SENTINEL = "edgeopt-worker "
NAMES_ENTRY = "names.json"
"""The entry of a batch file that holds the names of its arrays; an ``.npz`` that numpy wrote has none."""
CPU_PROVIDER = "CPUExecutionProvider"
NVIDIA_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")

OPENVINO_PROVIDER = "OpenVINOExecutionProvider"
QNN_PROVIDER = "QNNExecutionProvider"
PLUGIN_MODULES = ("onnxruntime_ep_", "onnxruntime_qnn")
"""How the modules of packages begin that bring a provider as a plug-in of plain onnxruntime."""
PLUGIN_KINDS = ("NPU", "GPU", "CPU")
"""Of a plug-in's devices, the first of these that is there runs the model."""

IDLE_STEP_SECONDS = 0.005
IDLE_MAX_SECONDS = 0.5
"""ONNX Runtime's idle threads were observed to spin for 40 ms after a run."""

COOL_C = 60.0
"""Below this temperature no processor of a phone or small board slows itself down."""
COOL_STEP_SECONDS = 3.0
COOL_MAX_SECONDS = 120.0
COOLING_C = 0.5
"""A temperature that falls by less in one step has settled, as a laptop's processor may do above the limit."""

PROFILE_CUT = 1.25
"""A node's time in one run counts as at most this many times its median, plus 1 µs."""
SHAPE_KEYS = ("input_type_shape", "output_type_shape")

GRAPH_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

STEADY_RUNS, STEADY_SECONDS = 5, 0.03
STEADY_RATIO = 0.02
"""Warm-up ends once a block of runs is at most this much quicker than the block before."""

X86 = ("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8")
ARM = ("asimd", "asimdhp", "asimddp", "asimdfhm", "i8mm", "bf16", "sve", "sve2")
FEATURES = frozenset(X86 + ARM)
"""Instruction sets by which ONNX Runtime chooses kernels."""


class WorkerError(Exception):
    """A failure with a reason: ``kind`` is ``model``, ``input``, ``profile``, or says what is wrong with a provider.

    It is missing or does not start (``provider``), does not start although it is there as a plug-in (``plugin``), or
    started and does not run the nodes (``nodes``).
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def bind_to_cores(cores: list[int]) -> None:
    """Bind this process, and every thread that it starts from now on, to these cores; an empty list means any."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise WorkerError("profile", f"{platform.system()} can't bind a process to cores: leave affinity empty")
    allowed = os.sched_getaffinity(0)
    missing = sorted(set(cores) - allowed)
    if missing:
        raise WorkerError(
            "profile",
            f"the target's affinity names core {', '.join(map(str, missing))}; on this device a process may use only "
            f"{', '.join(map(str, sorted(allowed)))}",
        )
    os.sched_setaffinity(0, cores)


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


def model_error_types() -> tuple[type[BaseException], ...]:
    """Return the types of exceptions that are the model's fault, not the worker's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = tuple(value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*own, OSError, MemoryError, RuntimeError, ValueError, zipfile.BadZipFile)


def find_plugins() -> dict[str, str]:
    """Return the providers that installed packages bring as plug-ins, and their libraries; nothing is loaded."""
    libraries: dict[str, str] = {}
    for found in pkgutil.iter_modules():
        if found.name.startswith(PLUGIN_MODULES):
            try:
                module = importlib.import_module(found.name)
                libraries |= dict.fromkeys(module.get_ep_names(), module.get_library_path())
            except (ImportError, AttributeError, OSError, RuntimeError):  # of another kind, broken, for another system
                continue
    return libraries


@functools.cache
def start_plugin(name: str, library: str) -> str:
    """Load a plug-in's library under the provider's name; return why it can run nothing here, or an empty text."""
    ort = import_onnxruntime()
    if name in ort.get_available_providers():
        reason = f"the device's onnxruntime has {name} already, so it can't load {library}"
        raise WorkerError("profile", f"{reason}: leave it out of the target's provider_libraries")
    if not hasattr(ort, "register_execution_provider_library"):
        return f"{name} is a plug-in, and the device's onnxruntime {ort.__version__} is too old for any: update it"
    try:
        ort.register_execution_provider_library(name, library)
    except model_error_types() as error:
        return f"the plug-in {name} can't be loaded: {one_line(error)}"
    if not plugin_devices(ort, name):
        return f"the plug-in {name} finds no hardware here that it supports"
    return ""


def plugin_devices(ort: Any, name: str) -> list[Any]:
    """Return the devices of a plug-in that is loaded, the preferred kind first; none if it is not a plug-in."""
    if not hasattr(ort, "get_ep_devices"):
        return []
    found = [one for one in ort.get_ep_devices() if one.ep_name == name != CPU_PROVIDER]
    kinds = {kind: number for number, kind in enumerate(PLUGIN_KINDS)}
    return sorted(found, key=lambda one: kinds.get(one.device.type.name, len(kinds)))


def choose_providers(ort: Any, request: dict[str, Any]) -> list[str]:
    """Return the providers to request, plug-ins loaded; refuse if one is missing and no fallback was allowed."""
    wanted, allowed = list(request["providers"]), list(request["allow_fallback"])
    libraries, available, reasons = request["provider_libraries"], list(ort.get_available_providers()), dict[str, str]()
    to_load = [name for name in dict.fromkeys(wanted + allowed) if name not in available or name in libraries]
    plugins = find_plugins() | libraries if to_load else {}
    for name in to_load:
        if name in plugins:
            reasons[name] = start_plugin(name, plugins[name])
            available += [] if reasons[name] or name in available else [name]
    missing = [name for name in wanted if name not in available]
    if missing and not allowed:
        here = ", ".join(available)
        reason = f"{missing[0]} is not in the device's onnxruntime {ort.__version__}, which has {here}"
        raise WorkerError("plugin" if missing[0] in reasons else "provider", reasons.get(missing[0]) or reason)
    chosen = [name for name in dict.fromkeys(wanted + allowed) if name in available]
    if not chosen:
        raise WorkerError(
            "provider", f"none of {', '.join(wanted + allowed)} is available; there is only {', '.join(available)}"
        )
    return chosen


def add_plugins(ort: Any, options: Any, providers: list[str], request: dict[str, Any]) -> bool:
    """Add the providers to a session's options if a plug-in is among them; return whether that was so."""
    devices = {name: plugin_devices(ort, name)[:1] for name in providers}
    if not any(devices.values()):
        return False
    for name in providers:
        if devices[name]:
            options.add_provider_for_devices(devices[name], plugin_options(name, devices[name][0], request))
        elif name != CPU_PROVIDER:  # which every session has, last
            options.add_provider(name, {})
    return True


def plugin_options(name: str, device: Any, request: dict[str, Any]) -> dict[str, str]:
    """Return what a plug-in must be told.

    OpenVINO: how many threads it may use on the processor, since it does not read the session's number. QNN: where its
    back end for the neural processor or the emulator is.
    """
    if name == OPENVINO_PROVIDER and device.device.type.name == "CPU":
        return {"load_config": json.dumps({"CPU": {"INFERENCE_NUM_THREADS": str(request["threads"])}})}
    if name != QNN_PROVIDER:
        return {}
    folder = Path((find_plugins() | request["provider_libraries"]).get(name, "")).parent
    found = [folder / file for file in ("libQnnHtp.so", "QnnHtp.dll") if (folder / file).is_file()]
    return {"backend_path": str(found[0])} if found else {}


def load_session(
    request: dict[str, Any],
    record_nodes: bool = False,
    profile: str = "",
    save_to: str = "",
    batch: dict[str, np.ndarray[Any, Any]] | None = None,
) -> tuple[Any, int]:
    """Load the model with the request's settings.

    ONNX Runtime writes its profile to the path ``profile`` and the optimized model to ``save_to``, if they are given.
    A provider that runs only fixed shapes gets those of ``batch``, or of the batch that is timed.

    Returns:
        The session, and how long it took to load, in nanoseconds.
    """
    ort = import_onnxruntime()
    if not Path(request["model"]).is_file():
        raise WorkerError("model", f"{request['model']} does not exist")
    providers = choose_providers(ort, request)
    spinning = "1" if request["allow_spinning"] else "0"
    options = ort.SessionOptions()
    if save_to:
        options.optimized_model_filepath = save_to
        options.add_session_config_entry("session.save_model_format", "ORT")
    if request["model"].endswith(".ort"):
        options.add_session_config_entry("session.use_memory_mapped_ort_model", "1")
        options.add_session_config_entry("session.use_ort_model_bytes_for_initializers", "1")
    options.add_session_config_entry("session.disable_prepacking", "0" if request["prepacking"] else "1")
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, GRAPH_LEVELS[request["graph_level"]])
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    options.enable_cpu_mem_arena = request["memory_arena"]
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if CPU_PROVIDER not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if record_nodes:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    begin = time.perf_counter_ns()
    try:
        if QNN_PROVIDER in providers and not save_to:
            fix_dimensions(ort, options, request, batch)
            begin = time.perf_counter_ns()
        named = {} if add_plugins(ort, options, providers, request) else {"providers": providers}
        session = ort.InferenceSession(request["model"], options, **named, enable_fallback=0)
    except model_error_types() as error:
        raise session_error(ort, providers[0], error) from error
    load_ns = time.perf_counter_ns() - begin
    lost = [name for name in request["providers"] if name not in session.get_providers()]
    if lost and not request["allow_fallback"]:
        raise WorkerError("provider", f"{lost[0]} did not start; ONNX Runtime fell back to {session.get_providers()}")
    return session, load_ns


def session_error(ort: Any, provider: str, error: BaseException) -> WorkerError:
    """Return what is wrong if a session on a provider does not load."""
    if "fallback to CPU EP has been explicitly disabled" not in str(error):
        return WorkerError("model", one_line(error))
    others = f"can't run all nodes, and the target names no {CPU_PROVIDER} for the others"
    if plugin_devices(ort, provider):  # it has started
        return WorkerError("nodes", f"{provider} {others}")
    return WorkerError("provider", f"{provider} did not start, or {others}")


def fix_dimensions(
    ort: Any, options: Any, request: dict[str, Any], batch: dict[str, np.ndarray[Any, Any]] | None
) -> None:
    """Give open dimensions of the inputs the sizes of a batch, or of the one that is timed."""
    reading = ort.SessionOptions()  # in little time and memory, since the peak of memory is measured too
    reading.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    reading.add_session_config_entry("session.disable_prepacking", "1")
    reading.log_severity_level = 3
    try:
        plain = ort.InferenceSession(request["model"], reading, providers=[CPU_PROVIDER])
    except model_error_types():  # the processor can't run it, as if it was compiled, for fixed shapes
        return
    batch = make_feed(plain, request) if batch is None else batch
    for entry in plain.get_inputs():
        sizes = batch[entry.name].shape if entry.name in batch else ()
        for axis, (name, size) in enumerate(zip(entry.shape, sizes)):  # noqa: B905 - too few sizes: an error of the run
            if isinstance(name, str):
                options.add_free_dimension_override_by_name(name, size)
            elif is_dynamic(name):
                raise WorkerError(
                    "model",
                    f"QNN runs only fixed shapes, and dimension {axis} of input '{entry.name}' has neither a size nor "
                    "a name to set it by: name it, or fix it by `python -m onnxruntime.tools.make_dynamic_shape_fixed`",
                )


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, without ONNX Runtime's prefix."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]  # the code's number and name
    return text or type(error).__name__


def count_nodes(session: Any, request: dict[str, Any]) -> dict[str, int]:
    """Return how many nodes each provider runs, according to ONNX Runtime's own assignment.

    Before 1.24 that is not known, and not needed where only the processor runs nodes: nothing is returned then.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        if session.get_providers() == [CPU_PROVIDER]:
            return {}
        raise WorkerError("provider", "this onnxruntime can't report which provider runs a node: install 1.24 or newer")
    nodes: dict[str, int] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        nodes[subgraph.ep_name] = nodes.get(subgraph.ep_name, 0) + len(subgraph.get_nodes())
    first = request["providers"][0]
    if nodes and first not in nodes and not request["allow_fallback"]:
        others = ", ".join(f"{name} {count}" for name, count in nodes.items())
        raise WorkerError("nodes", f"{first} started but runs no nodes: {others}")
    return nodes


def random_array(shape: list[int], kind: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return random values of ONNX Runtime's type ``kind``, such as ``tensor(float)``.

    Integers wider than 8 bits are 0 or 1, which are valid indices of any embedding table.
    """
    name = kind.removeprefix("tensor(").removesuffix(")")
    name = {"float": "float32", "double": "float64"}.get(name, name)
    if name.startswith("float"):
        return rng.standard_normal(shape).astype(name)
    if name in ("uint8", "int8"):
        return rng.integers(np.iinfo(name).min, np.iinfo(name).max, shape, dtype=name, endpoint=True)
    if name == "bool" or name.startswith(("int", "uint")):
        return rng.integers(0, 2, shape).astype(name)
    raise WorkerError("input", f"can't make random values of type {kind}: pass --inputs FILE.npz")


def make_feed(session: Any, request: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return one batch for every graph input, from the inputs file or random.

    The first batch of a batch file is used as it is. Of the arrays of another ``.npz``, an input with a dynamic batch
    gets the first rows, and an input with a fixed first dimension gets as many rows as that.
    """
    arrays, is_batch = read_inputs(Path(request["inputs"])) if request["inputs"] else ({}, False)
    rng, batch, feed = np.random.default_rng(0), request["batch_size"], {}
    for entry in session.get_inputs():
        shape = list(entry.shape)
        if shape and is_dynamic(shape[0]):
            shape[0] = batch
        elif shape and not arrays and shape[0] != batch:
            raise WorkerError("input", f"input '{entry.name}' has a fixed batch size of {shape[0]}, not {batch}")
        if arrays:
            feed[entry.name] = take_rows(arrays, entry.name, None if is_batch or not shape else shape[0])
            continue
        dynamic = [str(size) for size in shape if is_dynamic(size)]
        if dynamic:
            raise WorkerError(
                "input",
                f"input '{entry.name}' has dynamic dimensions besides the batch ({', '.join(dynamic)}): pass "
                "--inputs FILE.npz with one array for each input name",
            )
        feed[entry.name] = random_array(shape, entry.type, rng)
    return feed


def is_dynamic(size: Any) -> bool:
    """Tell whether a dimension of a graph input is open: it has a name or none, or exporters wrote -1 or 0."""
    return not isinstance(size, int) or size <= 0


def take_rows(arrays: dict[str, np.ndarray[Any, Any]], name: str, rows: int | None) -> np.ndarray[Any, Any]:
    """Return the first ``rows`` rows of an input's array, or all of it if ``rows`` is None."""
    if name not in arrays:
        raise WorkerError("input", f"the inputs file has no array '{name}', only {', '.join(sorted(arrays))}")
    array = arrays[name]
    if rows is None or not array.ndim:
        return np.ascontiguousarray(array) if array.ndim else array
    if array.shape[0] < rows:
        raise WorkerError(
            "input", f"array '{name}' of the inputs file has {array.shape[0]} rows; the batch needs {rows}"
        )
    return np.ascontiguousarray(array[:rows])


def make_run(session: Any, feed: dict[str, np.ndarray[Any, Any]]) -> Callable[[], object]:
    """Return a function that runs the batch once, with inputs and outputs in the host's memory.

    NVIDIA providers use IO binding, with fixed device buffers for the inputs, and synchronise at the end. As plug-ins
    they don't: plain onnxruntime has no such buffers.
    """
    built_in = [name for name in session.get_providers() if not plugin_devices(import_onnxruntime(), name)]
    if not any(name in NVIDIA_PROVIDERS for name in built_in):
        names = [entry.name for entry in session.get_outputs()]
        return lambda: session.run(names, feed)
    return make_bound_run(session, feed, "cuda")


def make_bound_run(session: Any, feed: dict[str, np.ndarray[Any, Any]], device: str) -> Callable[[], object]:
    """Return a function that runs the batch by IO binding, from buffers on ``device``, and returns the binding."""
    ort = import_onnxruntime()
    binding = session.io_binding()
    buffers = {name: ort.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in feed.items()}
    for name, buffer in buffers.items():
        binding.bind_ortvalue_input(name, buffer)
    for entry in session.get_outputs():
        binding.bind_output(entry.name, "cpu")

    def run() -> Any:
        for name, array in feed.items():
            buffers[name].update_inplace(array)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding

    return run


def time_runs(
    run: Callable[[], object], min_runs: int, min_seconds: float, max_seconds: float
) -> tuple[list[int], list[int]]:
    """Run until both ``min_runs`` and ``min_seconds`` are reached, or ``max_seconds``.

    Returns:
        Wall time and process CPU time of each run, in nanoseconds.
    """
    wall: list[int] = []
    cpu: list[int] = []
    wall_clock, cpu_clock = time.perf_counter_ns, time.process_time_ns
    begin = wall_clock()
    min_ns, max_ns = int(min_seconds * 1e9), int(max_seconds * 1e9)
    while True:
        cpu_begin = cpu_clock()
        wall_begin = wall_clock()
        run()
        wall_end = wall_clock()
        cpu.append(cpu_clock() - cpu_begin)
        wall.append(wall_end - wall_begin)
        elapsed = wall_end - begin
        if (elapsed >= min_ns and len(wall) >= min_runs) or elapsed >= max_ns:
            return wall, cpu


def warm_up(run: Callable[[], object], request: dict[str, Any]) -> tuple[int, bool]:
    """Run the minimum that the request asks for, then block after block until a block is no quicker than the last.

    Returns:
        How many runs that took, and whether they became steady within ``max_seconds``.
    """
    max_seconds = request["max_seconds"]
    end = time.monotonic() + max_seconds
    block, _ = time_runs(run, request["warmup_runs"], request["warmup_seconds"], max_seconds)
    count, before = len(block), np.median(block[-STEADY_RUNS:])
    while time.monotonic() < end:
        block, _ = time_runs(run, STEADY_RUNS, STEADY_SECONDS, max_seconds)
        count += len(block)
        if np.median(block) > (1 - STEADY_RATIO) * before:
            return count, True
        before = np.median(block)
    return count, False


def wait_until_idle() -> None:
    """Wait until this process's idle threads have stopped spinning."""
    for _ in range(int(IDLE_MAX_SECONDS / IDLE_STEP_SECONDS)):
        begin = time.process_time()
        time.sleep(IDLE_STEP_SECONDS)
        if time.process_time() - begin < 0.2 * IDLE_STEP_SECONDS:
            return


def cool_down(read: Callable[[], float | None], sleep: Callable[[float], None]) -> float:
    """Wait while the processor is hot and still cooling; return how many seconds that took.

    Args:
        read: Returns the temperature in degrees Celsius, or None if the system shows none; then there is no wait.
        sleep: Waits for a number of seconds.
    """
    waited, before = 0.0, read()
    while before is not None and before > COOL_C and waited < COOL_MAX_SECONDS:
        sleep(COOL_STEP_SECONDS)
        waited += COOL_STEP_SECONDS
        after = read()
        if after is None or before - after < COOLING_C:
            break
        before = after
    return waited


def count_involuntary_switches() -> int:
    """Return how often this process lost its processor so far; 0 if the system doesn't count that."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def read_pressure_microseconds() -> int | None:
    """Return the total time in which some task waited for a processor, or None if the system doesn't report it."""
    try:
        text = Path("/proc/pressure/cpu").read_text(encoding="ascii")
    except OSError:
        return None
    return next(int(line.rpartition("total=")[2]) for line in text.splitlines() if line.startswith("some"))


def time_model(request: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, and time single runs."""
    session, load_ns = load_session(request, record_nodes=True)
    nodes = count_nodes(session, request)
    run = make_run(session, make_feed(session, request))
    cooled_seconds = cool_down(read_temperature_c, time.sleep)
    before_c = read_temperature_c()
    warmup_runs, steady = warm_up(run, request)
    switches, pressure, begin = count_involuntary_switches(), read_pressure_microseconds(), time.perf_counter_ns()
    wall, cpu = time_runs(run, request["min_runs"], request["min_seconds"], request["max_seconds"])
    elapsed_us, after = (time.perf_counter_ns() - begin) / 1000, read_pressure_microseconds()
    known = pressure is not None and after is not None
    return {
        "wall_ns": wall,
        "cpu_ns": cpu,
        "warmup_runs": warmup_runs,
        "steady": steady,
        "load_ns": load_ns,
        "involuntary_switches": count_involuntary_switches() - switches,
        "pressure_ratio": min(1.0, (after - pressure) / elapsed_us) if known else None,  # type: ignore[operator]
        "cooled_seconds": cooled_seconds,
        "temperatures_c": None if before_c is None else (before_c, read_temperature_c() or before_c),
        "nodes": nodes,
    }


def profile_models(request: dict[str, Any]) -> dict[str, Any]:
    """Time every node of several models in turns, so that slow changes of the machine's speed affect all of them alike.

    Each turn is a new session without the profiler, for the time of the whole network, then one with it. No turn begins
    after ``max_seconds``, except for the first ``min_models`` models in the first round.
    """
    begin = time.monotonic()
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        for number in range(request["rounds"]):
            for index, model in enumerate(request["models"]):
                if time.monotonic() - begin > request["max_seconds"] and (number or index >= request["min_models"]):
                    return {"turns": turns}
                turns.append({"model": index, **profile_turn({**request, "model": model}, str(Path(folder) / "p"))})
    return {"turns": turns}


def profile_turn(request: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return times of whole runs without the profiler, and the nodes' times and shapes under the profiler."""
    runs, seconds, max_seconds = request["min_runs"], request["min_seconds"], request["max_seconds"]
    session, _ = load_session(request)
    run = make_run(session, make_feed(session, request))
    time_runs(run, request["warmup_runs"], request["warmup_seconds"], max_seconds)
    wall, cpu = time_runs(run, runs, seconds, max_seconds)
    del run, session
    session, _ = load_session(request, profile=prefix)
    run = make_run(session, make_feed(session, request))
    time_runs(run, request["warmup_runs"] + runs, seconds, max_seconds)
    file = Path(session.end_profiling())
    nodes = read_node_times(json.loads(file.read_bytes()), request["warmup_runs"])
    file.unlink()
    return {"wall_ns": wall, "cpu_ns": cpu, "nodes": nodes}


def read_node_times(events: list[dict[str, Any]], skipped_runs: int) -> list[dict[str, Any]]:
    """Return the nodes in the order in which they run: name, operator, shapes, nanoseconds until the next one starts.

    ONNX Runtime reports whole microseconds. A truncated duration is biased, which matters if a kernel takes 3 µs; the
    difference of two start times isn't, as both are truncated. Runs that lost the processor count as usual ones.
    """
    runs: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[-1].append(event)
        elif event["name"] == "model_run":
            runs.append([])
    runs = [run for run in runs if run]
    runs = runs[min(skipped_runs, len(runs) - 1) :]
    nodes = []
    for index, event in enumerate(runs[0]):
        same = [run for run in runs if len(run) == len(runs[0])]
        if index + 1 < len(runs[0]):
            times = np.array([run[index + 1]["ts"] - run[index]["ts"] for run in same], dtype=np.float64)
        else:
            times = np.array([run[index]["dur"] + 0.5 for run in same], dtype=np.float64)
        capped = np.minimum(times, PROFILE_CUT * np.median(times) + 1)
        shapes = [[next(iter(tensor.values())) for tensor in event["args"][key]] for key in SHAPE_KEYS]
        nodes.append(
            {
                "name": event["name"].removesuffix("_kernel_time"),
                "operator": operator_name(event["args"]["op_name"], event["args"]["provider"]),
                "provider": event["args"]["provider"],
                "inputs": shapes[0],
                "outputs": shapes[1],
                "ns": float(capped.mean()) * 1000,
            }
        )
    return nodes


def operator_name(name: str, provider: str) -> str:
    """Return a node's operator; of a part that a plug-in compiled, ONNX Runtime gives the provider and a hash."""
    number = name.removeprefix(provider + "_")
    return f"{provider.removesuffix('ExecutionProvider')} subgraph" if number.replace("_", "").isdigit() else name


def read_resident_bytes(key: str) -> int:
    """Return ``VmRSS`` or ``VmHWM`` of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key + ":"))


def reset_peak() -> None:
    """Reset ``VmHWM`` to the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def read_mapped_bytes(path: str) -> int:
    """Return how many bytes of a file are mapped into this process and in memory now."""
    total, inside, resolved = 0, False, str(Path(path).resolve())
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            inside = line.endswith(" " + resolved)
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def convert_model(request: dict[str, Any]) -> dict[str, Any]:
    """Write the model, optimized for this processor, in ONNX Runtime's own format."""
    load_session(request, save_to=request["outputs"])
    return {}


def measure_model_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Return peaks of memory above this process before the session: while loading, and while running."""
    import_onnxruntime()
    try:
        reset_peak()
    except OSError:
        return {"supported": False}
    device_before = read_device_memory()
    baseline = read_resident_bytes("VmHWM")
    session, _ = load_session(request)
    load_peak, load_mapped = read_resident_bytes("VmHWM"), read_mapped_bytes(request["model"])
    run = make_run(session, make_feed(session, request))
    reset_peak()
    _, cpu = time_runs(run, request["min_runs"], 0.0, request["max_seconds"])
    run_peak = read_resident_bytes("VmHWM")
    device_after = read_device_memory() if any(name in NVIDIA_PROVIDERS for name in session.get_providers()) else None
    known = device_before is not None and device_after is not None
    return {
        "supported": True,
        "baseline_bytes": baseline,
        "load_peak_bytes": load_peak - baseline,
        "run_peak_bytes": run_peak - baseline,
        "load_mapped_bytes": load_mapped,
        "run_mapped_bytes": read_mapped_bytes(request["model"]),
        "run_cpu_ns": int(np.median(cpu)),
        "device_peak_bytes": device_after - device_before if known else None,  # type: ignore[operator]
    }


def read_device_memory(library: str = "libnvidia-ml.so.1") -> int | None:
    """Return the bytes in use on the first visible NVIDIA device, read from its driver's library; None without one.

    ONNX Runtime's device arena doesn't shrink, so the use after the runs is the peak, including the CUDA context.
    """
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    handle, memory = ctypes.c_void_p(), (ctypes.c_ulonglong * 3)()  # total, free, used
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    if nvml.nvmlInit_v2() != 0:
        return None
    if first.isdigit():
        status = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(first)), ctypes.byref(handle))
    else:
        status = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(handle))
    is_read = status == 0 and nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
    nvml.nvmlShutdown()
    return int(memory[2]) if is_read else None


def write_batches(path: Path, batches: Iterable[dict[str, np.ndarray[Any, Any]]]) -> int:
    """Write batches one at a time to a batch file; return how many there were.

    A batch file is an uncompressed zip of arrays ``BATCH/NUMBER.npy``; ``names.json`` lists the names that the numbers
    stand for. So an input may have any name: with slashes, or equal to another one but for its case.
    """
    partial, count = path.with_name(path.name + ".part"), 0
    numbers: dict[str, int] = {}
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for count, batch in enumerate(batches, start=1):
            for name, array in batch.items():
                number = numbers.setdefault(name, len(numbers))
                with archive.open(f"{count - 1}/{number}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
        with archive.open(NAMES_ENTRY, "w") as stream:
            stream.write(json.dumps(list(numbers)).encode())
    partial.replace(path)
    return count


def iterate_batches(path: Path) -> Iterable[dict[str, np.ndarray[Any, Any]]]:
    """Yield the batches of a file that ``write_batches`` wrote, in order.

    Raises ``ValueError`` if it is another kind of file.
    """
    with zipfile.ZipFile(path) as archive:
        if NAMES_ENTRY not in archive.namelist():
            raise ValueError(f"it has no entry {NAMES_ENTRY}, so it is not a batch file")
        names = json.loads(archive.read(NAMES_ENTRY))
        batches: dict[int, list[str]] = {}
        for entry in archive.namelist():
            if entry != NAMES_ENTRY:
                batches.setdefault(int(entry.partition("/")[0]), []).append(entry)
        for index in sorted(batches):
            numbers = [int(entry.partition("/")[2].removesuffix(".npy")) for entry in batches[index]]
            yield {names[number]: read_entry(archive, f"{index}/{number}.npy") for number in numbers}


def read_entry(archive: zipfile.ZipFile, entry: str) -> np.ndarray[Any, Any]:
    """Return one array of a zip."""
    with archive.open(entry) as stream:
        array: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def read_inputs(path: Path) -> tuple[dict[str, np.ndarray[Any, Any]], bool]:
    """Return the first batch of a batch file and True, or the arrays of an ``.npz`` that numpy wrote and False."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.namelist()
        if NAMES_ENTRY not in entries:
            return {entry.removesuffix(".npy"): read_entry(archive, entry) for entry in entries}, False
    return next(iter(iterate_batches(path)), {}), True


def run_in_order(
    load: Callable[[dict[str, np.ndarray[Any, Any]]], Any],
    batches: Iterable[dict[str, np.ndarray[Any, Any]]],
    states: dict[str, str],
) -> Iterable[dict[str, np.ndarray[Any, Any]]]:
    """Yield the outputs of each batch; one that lacks an input of ``states`` gets an output of the batch before.

    ``load`` returns the session for a batch.
    """
    found: dict[str, np.ndarray[Any, Any]] = {}
    for batch in batches:
        fed = {name: found[output] for name, output in states.items() if name not in batch and output in found}
        session = load({**batch, **fed})
        names = [entry.name for entry in session.get_outputs()]
        found = dict(zip(names, session.run(names, {**batch, **fed}), strict=True))
        yield found


def run_batches(request: dict[str, Any]) -> dict[str, Any]:
    """Run every batch of the inputs file and write the outputs in the same format."""
    sessions: dict[Any, Any] = {}

    def load(batch: dict[str, np.ndarray[Any, Any]]) -> Any:
        fixed = QNN_PROVIDER in request["providers"]
        key = tuple((name, batch[name].shape) for name in sorted(batch)) if fixed else ()
        if key not in sessions:
            sessions[key], _ = load_session(request, batch=batch)
        return sessions[key]

    outputs = run_in_order(load, iterate_batches(Path(request["inputs"])), request["states"])
    return {"batches": write_batches(Path(request["outputs"]), outputs)}


def describe_machine(request: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that a reader needs to judge numbers from this machine; refuse if it lacks a provider."""
    ort = import_onnxruntime()
    if request["providers"]:
        choose_providers(ort, request)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    family = [cpu[key] for key in ("cpu family", "model", "stepping", "CPU implementer", "CPU part") if key in cpu]
    return {
        "family": " ".join([platform.machine(), *family]),
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "features": sorted(FEATURES.intersection(flags)),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_bytes": read_total_memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "providers": list(dict.fromkeys([*ort.get_available_providers(), *find_plugins()])),
        "governor": read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperature_c": read_temperature_c(),
    }


def read_text(path: str) -> str | None:
    """Return a small file's text, or None if it can't be read."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def read_temperature_c() -> float | None:
    """Return the hottest zone's temperature, or None if the system shows none."""
    texts = [read_text(str(zone / "temp")) for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*"))]
    values = [int(text) / 1000 for text in texts if text and text.lstrip("-").isdigit()]
    return max(values, default=None)


def read_total_memory_bytes() -> int:
    """Return the machine's memory; 0 if Python's standard library can't tell (Windows)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def serve(request: dict[str, Any], lines: queue.SimpleQueue[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Load and warm up once, then time one block for each further line; the end of stdin ends the process."""
    session, _ = load_session(request, record_nodes=True)
    nodes = count_nodes(session, request)
    run = make_run(session, make_feed(session, request))
    time_runs(run, request["warmup_runs"], request["warmup_seconds"], request["max_seconds"])
    spins = request["allow_spinning"] and request["threads"] != 1
    precise = time.get_clock_info("process_time").resolution < 1e-5
    ready: dict[str, Any] = {"ok": True, "nodes": nodes, "precise_cpu_clock": precise}
    while True:
        if spins:
            wait_until_idle()
        answer(ready)
        block = json.loads(lines.get())
        time_runs(run, block["warmup_runs"], 0.0, block["max_seconds"])
        wall, cpu = time_runs(run, block["min_runs"], block["min_seconds"], block["max_seconds"])
        ready = {"ok": True, "wall_ns": wall, "cpu_ns": cpu, "temperature_c": read_temperature_c()}


MODES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "time": time_model,
    "memory": measure_model_memory,
    "outputs": run_batches,
    "nodes": profile_models,
    "convert": convert_model,
    "describe": describe_machine,
}


def watch_stdin(lines: queue.SimpleQueue[str]) -> None:
    """Queue stdin's lines and end the process when stdin ends: then the parent is gone."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Serve one request after the other, until stdin ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print: that goes to stderr

    def answer(value: dict[str, Any]) -> None:
        channel.write(SENTINEL + json.dumps(value) + "\n")
        channel.flush()

    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=watch_stdin, args=(lines,), daemon=True).start()
    gc.disable()
    while True:
        serve_one(json.loads(lines.get()), lines, answer)
        gc.collect()


def serve_one(request: dict[str, Any], lines: queue.SimpleQueue[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer one request, or say why not."""
    try:
        bind_to_cores(request["affinity"])
        if request["mode"] == "serve":
            serve(request, lines, answer)
        else:
            answer({"ok": True, **MODES[request["mode"]](request)})
    except WorkerError as error:
        answer({"ok": False, "kind": error.kind, "reason": str(error)})
    except model_error_types() as error:
        disk_is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        answer({"ok": False, "kind": "device" if disk_is_full else "model", "reason": one_line(error)})


if __name__ == "__main__":
    main()
