"""The worker: one file that needs only the standard library, numpy and onnxruntime, so that it runs on any device.

In: one JSON line on stdin (``edgeopt.device.base.WorkerRequest``). Out: one line on stdout, ``edgeopt-worker`` and JSON:
``{"ok": true, ...}`` or ``{"ok": false, "kind": ..., "reason": ...}``, with a kind of ``WorkerError`` or ``device``. In
mode ``serve`` each further line of stdin is a block to run, and gets a line in return. The worker ends when stdin does,
so that it never outlives its parent: keep stdin open until the answer is there.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
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
CPU = "CPUExecutionProvider"
NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")

IDLE_STEP_SECONDS = 0.005
IDLE_MAX_SECONDS = 0.5
"""Idle threads of ONNX Runtime were seen to spin for 40 ms after a run."""

COOL_C = 60.0
"""Below this no processor of a phone or a small board slows itself down."""
COOL_STEP_SECONDS = 3.0
COOL_MAX_SECONDS = 120.0
COOLING_C = 0.5
"""In one step: what falls by less has reached where it stays, as the processor of a laptop may above the limit."""

PROFILE_CUT = 1.25
"""A node's time in a run counts at most this many times its median (and a microsecond)."""
SHAPES = ("input_type_shape", "output_type_shape")

GRAPH_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

STEADY_RUNS, STEADY_SECONDS = 5, 0.03
STEADY_RATIO = 0.02
"""Warm-up ends when a block of runs is no quicker than the block before by more than this."""

X86 = ("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8")
ARM = ("asimd", "asimdhp", "asimddp", "asimdfhm", "i8mm", "bf16", "sve", "sve2")
FEATURES = frozenset(X86 + ARM)
"""Instruction sets that ONNX Runtime's kernels choose by."""


class WorkerError(Exception):
    """A failure with a reason: ``kind`` is ``model``, ``input``, ``provider`` or ``profile``."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def bind(cores: list[int]) -> None:
    """Bind this process, and every thread that it starts from now on, to some cores; none means any."""
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise WorkerError("profile", f"{platform.system()} binds no process to cores: leave affinity empty")
    allowed = os.sched_getaffinity(0)
    missing = sorted(set(cores) - allowed)
    if missing:
        raise WorkerError(
            "profile",
            f"the target's affinity names core {', '.join(map(str, missing))}; a process there may use "
            f"{', '.join(map(str, sorted(allowed)))}",
        )
    os.sched_setaffinity(0, cores)


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    return onnxruntime


def reported_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions that are the model's fault, not the worker's."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    known = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*known, OSError, MemoryError, RuntimeError, ValueError, zipfile.BadZipFile)


def choose_providers(ort: Any, request: dict[str, Any]) -> list[str]:
    """Return the providers to ask for; refuse where one is missing and no fall-back was allowed."""
    wanted, allowed = list(request["providers"]), list(request["allow_fallback"])
    available = ort.get_available_providers()
    missing = [name for name in wanted if name not in available]
    if missing and not allowed:
        raise WorkerError(
            "provider", f"{missing[0]} is not in onnxruntime {ort.__version__} there, which has {', '.join(available)}"
        )
    chosen = [name for name in dict.fromkeys(wanted + allowed) if name in available]
    if not chosen:
        raise WorkerError("provider", f"none of {', '.join(wanted + allowed)} is there, only {', '.join(available)}")
    return chosen


def open_session(
    request: dict[str, Any], record_nodes: bool = False, profile: str = "", save_to: str = ""
) -> tuple[Any, int]:
    """Load the model as the request says.

    ONNX Runtime writes its profile to the path ``profile``, and the optimized model to ``save_to``, if they are given.

    Returns:
        The session, and the nanoseconds that it took to load.
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
    if CPU not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if record_nodes:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    begin = time.perf_counter_ns()
    try:
        session = ort.InferenceSession(request["model"], options, providers=providers, enable_fallback=0)
    except reported_errors() as error:
        kind = "provider" if "fallback to CPU EP has been explicitly disabled" in str(error) else "model"
        raise WorkerError(kind, plain(error)) from error
    load_ns = time.perf_counter_ns() - begin
    lost = [name for name in request["providers"] if name not in session.get_providers()]
    if lost and not request["allow_fallback"]:
        raise WorkerError("provider", f"{lost[0]} did not start; ONNX Runtime fell back to {session.get_providers()}")
    return session, load_ns


def plain(error: BaseException) -> str:
    """Return an error's text without ONNX Runtime's prefix and on one line."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 2)[-1]
    return text or type(error).__name__


def count_nodes(session: Any, request: dict[str, Any]) -> dict[str, int]:
    """Return how many nodes each provider runs, by ONNX Runtime's own assignment."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise WorkerError("provider", "this onnxruntime cannot tell which provider runs a node; 1.24 or newer can")
    nodes: dict[str, int] = {}
    for subgraph in session.get_provider_graph_assignment_info():
        nodes[subgraph.ep_name] = nodes.get(subgraph.ep_name, 0) + len(subgraph.get_nodes())
    first = request["providers"][0]
    if nodes and first not in nodes and not request["allow_fallback"]:
        raise WorkerError("provider", f"{first} started, but runs none of the nodes: {nodes}")
    return nodes


def random_array(shape: list[int], kind: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return random values of ONNX Runtime's type ``kind``, such as ``tensor(float)``.

    Wide integers are 0 or 1, which any table of embeddings has.
    """
    name = kind.removeprefix("tensor(").removesuffix(")")
    name = {"float": "float32", "double": "float64"}.get(name, name)
    if name.startswith("float"):
        return rng.standard_normal(shape).astype(name)
    if name in ("uint8", "int8"):
        return rng.integers(np.iinfo(name).min, np.iinfo(name).max, shape, dtype=name, endpoint=True)
    if name == "bool" or name.startswith(("int", "uint")):
        return rng.integers(0, 2, shape).astype(name)
    raise WorkerError("input", f"random values of type {kind} make no sense: give an inputs file (.npz)")


def make_feed(session: Any, request: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return one batch for every graph input, from the inputs file or at random."""
    given: dict[str, np.ndarray[Any, Any]] = {}
    if request["inputs"]:
        with np.load(request["inputs"], allow_pickle=False) as archive:
            given = {
                name.removeprefix("0/"): archive[name] for name in archive.files if name.count("/") == name.count("0/")
            }
    rng, batch, feed = np.random.default_rng(0), request["batch_size"], {}
    for entry in session.get_inputs():
        shape = list(entry.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        elif shape and not given and shape[0] != batch:
            raise WorkerError("input", f"input '{entry.name}' has a fixed batch of {shape[0]}; asked for was {batch}")
        if given:
            feed[entry.name] = given_array(given, entry.name, batch)
            continue
        open_ = [str(size) for size in shape if not isinstance(size, int)]
        if open_:
            raise WorkerError(
                "input",
                f"input '{entry.name}' leaves {', '.join(open_)} open beside the batch: give an inputs file (.npz with "
                "one array for each input name)",
            )
        feed[entry.name] = random_array(shape, entry.type, rng)
    return feed


def given_array(given: dict[str, np.ndarray[Any, Any]], name: str, batch: int) -> np.ndarray[Any, Any]:
    """Return the first ``batch`` rows of the array given for an input."""
    if name not in given:
        raise WorkerError("input", f"the inputs file has no array '{name}', only {', '.join(sorted(given))}")
    array = given[name]
    if array.ndim and array.shape[0] < batch:
        raise WorkerError(
            "input", f"array '{name}' of the inputs file has {array.shape[0]} rows; the batch needs {batch}"
        )
    return np.ascontiguousarray(array[:batch] if array.ndim else array)


def make_run(session: Any, feed: dict[str, np.ndarray[Any, Any]]) -> Callable[[], object]:
    """Return a function that runs the batch once, from the host's memory back to it.

    On an NVIDIA provider by IO binding, with fixed device buffers for the inputs, and synchronised at the end.
    """
    if not any(name in NVIDIA for name in session.get_providers()):
        names = [entry.name for entry in session.get_outputs()]
        return lambda: session.run(names, feed)
    return bound_run(session, feed, "cuda")


def bound_run(session: Any, feed: dict[str, np.ndarray[Any, Any]], place: str) -> Callable[[], object]:
    """Return a run by IO binding: inputs copied to buffers on ``place``, outputs back on the host; it returns these."""
    ort = import_onnxruntime()
    binding = session.io_binding()
    buffers = {name: ort.OrtValue.ortvalue_from_numpy(array, place, 0) for name, array in feed.items()}
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


def repeat(run: Callable[[], object], runs: int, seconds: float, most: float) -> tuple[list[int], list[int]]:
    """Run until ``runs`` runs and ``seconds`` are both reached, or ``most`` seconds.

    Returns:
        Wall and process CPU nanoseconds of each run.
    """
    wall: list[int] = []
    cpu: list[int] = []
    wall_clock, cpu_clock = time.perf_counter_ns, time.process_time_ns
    begin = wall_clock()
    least_ns, most_ns = int(seconds * 1e9), int(most * 1e9)
    while True:
        cpu_begin = cpu_clock()
        wall_begin = wall_clock()
        run()
        wall_end = wall_clock()
        cpu.append(cpu_clock() - cpu_begin)
        wall.append(wall_end - wall_begin)
        elapsed = wall_end - begin
        if (elapsed >= least_ns and len(wall) >= runs) or elapsed >= most_ns:
            return wall, cpu


def warm_up(run: Callable[[], object], request: dict[str, Any]) -> tuple[int, bool]:
    """Run the least that the request asks for, then block after block until one is no quicker than the one before.

    Returns:
        How many runs that took, and whether they got steady within ``max_seconds``.
    """
    most = request["max_seconds"]
    end = time.monotonic() + most
    block, _ = repeat(run, request["warmup_runs"], request["warmup_seconds"], most)
    count, before = len(block), np.median(block[-STEADY_RUNS:])
    while time.monotonic() < end:
        block, _ = repeat(run, STEADY_RUNS, STEADY_SECONDS, most)
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
    """Wait while the processor is hot and still cooling; return the seconds that were waited.

    Args:
        read: The temperature in degrees Celsius; None where the system shows none, and nothing is waited for.
        sleep: Takes seconds.
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


def involuntary_switches() -> int:
    """Return how often this process lost its processor so far; 0 where the system does not count."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def pressure_microseconds() -> int | None:
    """Return the time in which some task waited for a processor, or None where the system does not tell."""
    try:
        text = Path("/proc/pressure/cpu").read_text(encoding="ascii")
    except OSError:
        return None
    return next(int(line.rpartition("total=")[2]) for line in text.splitlines() if line.startswith("some"))


def time_model(request: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up, and time single runs."""
    session, load_ns = open_session(request, record_nodes=True)
    nodes = count_nodes(session, request)
    run = make_run(session, make_feed(session, request))
    cooled_seconds = cool_down(temperature_c, time.sleep)
    most, before_c = request["max_seconds"], temperature_c()
    warmup_runs, steady = warm_up(run, request)
    switches, pressure, begin = involuntary_switches(), pressure_microseconds(), time.perf_counter_ns()
    wall, cpu = repeat(run, request["min_runs"], request["min_seconds"], most)
    elapsed_us, after = (time.perf_counter_ns() - begin) / 1000, pressure_microseconds()
    known = pressure is not None and after is not None
    return {
        "wall_ns": wall,
        "cpu_ns": cpu,
        "warmup_runs": warmup_runs,
        "steady": steady,
        "load_ns": load_ns,
        "involuntary_switches": involuntary_switches() - switches,
        "pressure_ratio": min(1.0, (after - pressure) / elapsed_us) if known else None,  # type: ignore[operator]
        "cooled_seconds": cooled_seconds,
        "temperatures_c": None if before_c is None else (before_c, temperature_c() or before_c),
        "nodes": nodes,
    }


def profile_models(request: dict[str, Any]) -> dict[str, Any]:
    """Time every node of several models in turns, so that slow changes of the machine's speed reach all alike.

    Each turn is a session of its own without the profiler, for the time of the whole, then one with it. Turns
    that ``max_seconds`` does not reach are left out, but for ``min_models`` models in the first round.
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
    """Return one model's plain CPU times of whole runs, and the times and shapes of its nodes under the profiler."""
    runs, seconds, most = request["min_runs"], request["min_seconds"], request["max_seconds"]
    session, _ = open_session(request)
    run = make_run(session, make_feed(session, request))
    repeat(run, request["warmup_runs"], request["warmup_seconds"], most)
    wall, cpu = repeat(run, runs, seconds, most)
    del run, session
    session, _ = open_session(request, profile=prefix)
    run = make_run(session, make_feed(session, request))
    repeat(run, request["warmup_runs"] + runs, seconds, most)
    file = Path(session.end_profiling())
    nodes = read_node_times(json.loads(file.read_bytes()), request["warmup_runs"])
    file.unlink()
    return {"wall_ns": wall, "cpu_ns": cpu, "nodes": nodes}


def read_node_times(events: list[dict[str, Any]], skipped_runs: int) -> list[dict[str, Any]]:
    """Return nodes in the order in which they run: name, operator, shapes, nanoseconds until the next one starts.

    ONNX Runtime notes whole microseconds. A duration is cut to whole ones, which is a bias where kernels take three;
    the difference of two starts is not, as both are cut. Runs that lost the processor count as usual ones.
    """
    runs: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[-1].append(event)
        elif event["name"] == "model_run":
            runs.append([])
    runs = [run for run in runs if run]
    runs = runs[min(skipped_runs, len(runs) - 1) :]
    found = []
    for index, event in enumerate(runs[0]):
        same = [run for run in runs if len(run) == len(runs[0])]
        if index + 1 < len(runs[0]):
            times = np.array([run[index + 1]["ts"] - run[index]["ts"] for run in same], dtype=np.float64)
        else:
            times = np.array([run[index]["dur"] + 0.5 for run in same], dtype=np.float64)
        usual = np.minimum(times, PROFILE_CUT * np.median(times) + 1)
        shapes = [[next(iter(one.values())) for one in event["args"][key]] for key in SHAPES]
        found.append(
            {
                "name": event["name"].removesuffix("_kernel_time"),
                "operator": event["args"]["op_name"],
                "provider": event["args"]["provider"],
                "inputs": shapes[0],
                "outputs": shapes[1],
                "ns": float(usual.mean()) * 1000,
            }
        )
    return found


def resident_bytes(key: str) -> int:
    """Return ``VmRSS`` or ``VmHWM`` of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(key + ":"))


def forget_peak() -> None:
    """Set ``VmHWM`` back to what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def mapped_bytes(path: str) -> int:
    """Return how many bytes of a file are mapped into this process and in memory now."""
    total, inside, whole = 0, False, str(Path(path).resolve())
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            inside = line.endswith(" " + whole)
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Write the model, optimized for this processor, in ONNX Runtime's own format."""
    open_session(request, save_to=request["outputs"])
    return {}


def measure_model_memory(request: dict[str, Any]) -> dict[str, Any]:
    """Return peaks of memory over this process before the session: while loading, and while running."""
    import_onnxruntime()
    try:
        forget_peak()
    except OSError:
        return {"supported": False}
    device_before = device_memory_used()
    baseline = resident_bytes("VmHWM")
    session, _ = open_session(request)
    load_peak, load_mapped = resident_bytes("VmHWM"), mapped_bytes(request["model"])
    run = make_run(session, make_feed(session, request))
    forget_peak()
    _, cpu = repeat(run, request["min_runs"], 0.0, request["max_seconds"])
    run_peak = resident_bytes("VmHWM")
    device_after = device_memory_used() if any(name in NVIDIA for name in session.get_providers()) else None
    both = device_before is not None and device_after is not None
    return {
        "supported": True,
        "baseline_bytes": baseline,
        "load_peak_bytes": load_peak - baseline,
        "run_peak_bytes": run_peak - baseline,
        "load_mapped_bytes": load_mapped,
        "run_mapped_bytes": mapped_bytes(request["model"]),
        "run_cpu_ns": int(np.median(cpu)),
        "device_peak_bytes": device_after - device_before if both else None,  # type: ignore[operator]
    }


def device_memory_used(library: str = "libnvidia-ml.so.1") -> int | None:
    """Return the bytes in use on the first visible NVIDIA device, by its driver's library; None without one.

    ONNX Runtime's device arena does not shrink, so the use after the runs is the peak, with the CUDA context in it.
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
        found = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(first)), ctypes.byref(handle))
    else:
        found = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(handle))
    used = found == 0 and nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
    nvml.nvmlShutdown()
    return int(memory[2]) if used else None


def write_batches(path: Path, batches: Iterable[dict[str, np.ndarray[Any, Any]]]) -> int:
    """Write batches as an uncompressed ``.npz`` with keys ``INDEX/NAME``, one at a time; return how many."""
    part, count = path.with_name(path.name + ".part"), 0
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for count, batch in enumerate(batches, start=1):
            for name, array in batch.items():
                with archive.open(f"{count - 1}/{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    part.replace(path)
    return count


def iterate_batches(path: Path) -> Iterable[dict[str, np.ndarray[Any, Any]]]:
    """Yield the batches of a file that ``write_batches`` wrote, in order."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        names: dict[int, list[str]] = {}
        for key in archive.files:
            names.setdefault(int(key.partition("/")[0]), []).append(key)
        for index in sorted(names):
            yield {key.partition("/")[2]: archive[key] for key in names[index]}


def run_batches(request: dict[str, Any]) -> dict[str, Any]:
    """Run every batch of the inputs file and write the outputs in the same form."""
    session, _ = open_session(request)
    names = [entry.name for entry in session.get_outputs()]
    batches = iterate_batches(Path(request["inputs"]))
    written = (dict(zip(names, session.run(names, batch), strict=True)) for batch in batches)
    return {"batches": write_batches(Path(request["outputs"]), written)}


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to judge numbers from this machine."""
    ort = import_onnxruntime()
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
        "memory_bytes": total_memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "governor": read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "temperature_c": temperature_c(),
    }


def read_line(path: str) -> str | None:
    """Return a small file's text, or None where it cannot be read."""
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return None


def temperature_c() -> float | None:
    """Return the hottest zone's temperature, or None where the system shows none."""
    found = [read_line(str(zone / "temp")) for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*"))]
    values = [int(text) / 1000 for text in found if text and text.lstrip("-").isdigit()]
    return max(values, default=None)


def total_memory_bytes() -> int:
    """Return the machine's memory; 0 where Python's standard library cannot tell (Windows)."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def serve(request: dict[str, Any], lines: queue.SimpleQueue[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Load and warm up once, then time one block for each further line; the end of stdin ends the process."""
    session, _ = open_session(request, record_nodes=True)
    nodes = count_nodes(session, request)
    run = make_run(session, make_feed(session, request))
    repeat(run, request["warmup_runs"], request["warmup_seconds"], request["max_seconds"])
    spins = request["allow_spinning"] and request["threads"] != 1
    precise = time.get_clock_info("process_time").resolution < 1e-5
    ready: dict[str, Any] = {"ok": True, "nodes": nodes, "precise_cpu_clock": precise}
    while True:
        if spins:
            wait_until_idle()
        answer(ready)
        block = json.loads(lines.get())
        repeat(run, block["warmup_runs"], 0.0, block["max_seconds"])
        wall, cpu = repeat(run, block["min_runs"], block["min_seconds"], block["max_seconds"])
        ready = {"ok": True, "wall_ns": wall, "cpu_ns": cpu, "temperature_c": temperature_c()}


MODES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "time": time_model,
    "memory": measure_model_memory,
    "outputs": run_batches,
    "nodes": profile_models,
    "convert": convert,
    "describe": lambda _request: describe_machine(),
}


def watch_stdin(lines: queue.SimpleQueue[str]) -> None:
    """Hand over stdin's lines, and end the process when stdin ends: the parent is gone."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def main() -> None:
    """Serve one request."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr

    def answer(value: dict[str, Any]) -> None:
        channel.write(SENTINEL + json.dumps(value) + "\n")
        channel.flush()

    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=watch_stdin, args=(lines,), daemon=True).start()
    request = json.loads(lines.get())
    gc.disable()
    try:
        bind(request["affinity"])
        if request["mode"] == "serve":
            serve(request, lines, answer)
        else:
            answer({"ok": True, **MODES[request["mode"]](request)})
    except WorkerError as error:
        answer({"ok": False, "kind": error.kind, "reason": str(error)})
    except reported_errors() as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        answer({"ok": False, "kind": "device" if full else "model", "reason": plain(error)})
    lines.get()


if __name__ == "__main__":
    main()
