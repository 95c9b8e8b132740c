"""The design guide's table of who may import whom, import cycles, sizes, and where exceptions may be caught."""

import ast
import graphlib
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "edgeopt"

MAX_FILE_LINES = 400  # what one reads in one sitting
MAX_FUNCTION_LINES = 60  # about one screen
MAX_PIPELINE_FUNCTION_LINES = 50  # the order of things has to be seen at a glance
MAX_MODULES = {"pipeline": 14, "graph": 14}  # in one folder; the largest rooms are these
MAX_OTHER_MODULES = 18

ANY = {"*"}

ONNX = {"onnx", "google"}  # what onnx.load raises for a broken file is google.protobuf's

ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    # place: (places of edgeopt, packages); always: the standard library, the place itself, and msgspec with records
    "": ({"task", "tasks", "records", "errors"}, set()),  # edgeopt/__init__.py, which imports them on first use
    "__main__": ({"cli"}, set()),
    "errors": (set(), set()),
    "logs": (set(), set()),
    "records": (set(), {"msgspec"}),
    "statistics": ({"records"}, {"numpy", "scipy"}),
    "scoring": ({"records", "errors", "statistics"}, {"numpy", "faster_coco_eval"}),
    "config": ({"records", "errors", "store"}, set()),
    "task": ({"records", "errors", "tasks"}, {"torch", "numpy", "safetensors", *ONNX}),
    "tasks": (
        {"records", "errors", "task", "graph", "scoring", "onnx_module", "model_files"},
        {"torch", "numpy", "scipy", "safetensors", "PIL", "soundfile", *ONNX},
    ),
    "store": ({"records", "errors", "model_files"}, set()),
    "planning": ({"records", "errors", "latency"}, {"numpy", "scipy"}),
    "passes": ({"records", "errors", "store", "task", "scoring"}, {"torch", "numpy", "safetensors"}),
    "export": ({"records", "errors", "model_files"}, {"torch", "onnxscript", "numpy", *ONNX}),
    "onnx_module": ({"errors", "model_files"}, {"torch", "numpy", *ONNX}),
    "model_files": (set(), {"numpy", *ONNX}),
    "graph": ({"records", "errors", "model_files"}, {"onnxsim", "onnxruntime", "numpy", *ONNX}),
    "device": ({"records", "errors", "model_files"}, {"numpy", "segno"}),
    "bench": ({"records", "errors", "statistics", "device", "model_files"}, {"onnxruntime", "numpy"}),
    "latency": ({"records", "errors", "statistics", "graph", "bench", "model_files"}, {"numpy", "scipy", "onnx"}),
    "select": ({"records", "errors", "statistics"}, set()),
    "bundle": (
        {"records", "errors", "report", "model_files"},
        {"numpy", "msgspec", "model_signing", "cryptography", *ONNX},
    ),
    "report": ({"records", "errors", "statistics"}, {"jinja2", "rich"}),
    "pipeline": (ANY, ANY),
    "cli": (ANY, {"click", "rich"}),
}

PIPELINE: dict[str, set[str]] = {
    # room of pipeline: the rooms of pipeline that it may import, from the bottom up
    "boundary": set(),
    "device_calibration": set(),
    "onnx_teacher": set(),
    "given_model": {"boundary"},
    "processes": set(),
    "user_code": {"boundary"},
    "evaluation": {"boundary", "given_model", "processes", "user_code"},
    "judged_sizes": set(),
    "task_data": {"evaluation", "judged_sizes", "onnx_teacher"},
    "torch_process": {"boundary", "onnx_teacher", "processes", "user_code"},
    "context": {"judged_sizes", "task_data", "torch_process"},
    "artifacts": {
        "boundary",
        "context",
        "device_calibration",
        "evaluation",
        "judged_sizes",
        "task_data",
        "torch_process",
    },
    "score_checks": {"artifacts", "context"},
    "search": {"artifacts", "boundary", "context", "torch_process"},
    "result": {"artifacts", "boundary", "context", "score_checks", "search"},
    "verify": {"evaluation"},
    "bench_file": {"device_calibration", "given_model", "verify"},
    "inspect": {"evaluation", "given_model", "torch_process"},
    "build": {
        "artifacts",
        "boundary",
        "context",
        "evaluation",
        "judged_sizes",
        "onnx_teacher",
        "result",
        "score_checks",
        "search",
        "task_data",
        "torch_process",
    },
}

READ_VERSION = {"cli", "bundle", "pipeline", "report"}
"""Places that may import the package's root, which itself imports nothing, for ``__version__``."""

ONE_FILE: dict[str, set[str]] = {
    "bench/worker.py": {"numpy", "onnxruntime"},
    "bundle/samples/python/run.py": {"numpy", "onnxruntime", "PIL"},
    "device/file_agent.py": set(),
}
"""Files that run alone on a device or in an app: nothing of edgeopt, and only these packages."""

LONG = {"bench/worker.py": "one file by design: it is copied to a device and runs there alone"}
"""``path`` or ``path:function`` to the reason why it exceeds its size."""

BOUNDARY = "pipeline/boundary.py:run_step"
ATTEMPT = "graph/preparation/attempts.py:attempt"  # of tools for which there is another way
"""The one function that may catch every exception: there the code of users, exporters and runtimes fails."""

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [path.relative_to(PACKAGE).as_posix() for path in FILES]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def place_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imports_of(nodes: list[ast.AST]) -> list[str]:
    """Return dotted names; ``from a import b`` is ``a.b``, which is a module or something in one."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def outside_functions(body: list[ast.stmt]) -> list[ast.AST]:
    """Return the statements outside functions: what runs when a module is loaded, and what type checkers see."""
    found: list[ast.AST] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        found.append(node)
        for field in ("body", "orelse", "finalbody"):
            found += outside_functions(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            found += outside_functions(handler.body)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_module_imports_only_what_its_place_may(name):
    path = PACKAGE / name
    place = place_of(module_name(path))
    assert place in ALLOWED, f"edgeopt/{name}: a new place needs a row in the table of this test"
    places, packages = ALLOWED[place]
    if name in ONE_FILE:
        places, packages, place = set(), ONE_FILE[name], "a file that stands alone"
    if "records" in places:
        packages = packages | {"msgspec"}
    wrong = []
    for target in imports_of(list(ast.walk(tree(path)))):
        top = target.split(".")[0]
        if top == "edgeopt":
            other = place_of(target)
            version = other in ("", "__version__") and place in READ_VERSION
            fine = version or other == place or places == ANY or other in places
        else:
            fine = top in sys.stdlib_module_names or packages == ANY or top in packages
        if not fine:
            wrong.append(target)
    assert not wrong, f"edgeopt/{name} ({place or 'root'}) imports {', '.join(wrong)}"


def module_of(target: str) -> str:
    """Return the module that a dotted name is, or is in."""
    return next(name for name in (target, target.rpartition(".")[0], "edgeopt") if name in MODULES)


def imports_in_package(path: Path) -> set[str]:
    """Return the modules that a module imports outside functions, also those for type checkers."""
    targets = imports_of(outside_functions(tree(path).body))
    return {module_of(target) for target in targets if target.split(".")[0] == "edgeopt"} - {module_name(path)}


def test_modules_import_each_other_without_a_cycle_even_for_type_checkers():
    # Nobody is imported by the root at run time: it hands out names on first use.
    edges = {module: imports_in_package(path) for module, path in MODULES.items() if module != "edgeopt"}
    graphlib.TopologicalSorter(edges).prepare()


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("pipeline/") and name.count("/") < 3])
def test_a_room_of_pipeline_imports_only_the_rooms_below_it(name):
    room = name.split("/")[1].removesuffix(".py")
    if room == "__init__":
        return
    assert room in PIPELINE, f"edgeopt/{name}: a new room of pipeline needs a row in the table of this test"
    targets = [target.split(".") for target in imports_of(list(ast.walk(tree(PACKAGE / name))))]
    used = {parts[2] for parts in targets if parts[:2] == ["edgeopt", "pipeline"]} - {room}
    assert used <= PIPELINE[room], f"edgeopt/{name} imports {', '.join(sorted(used - PIPELINE[room]))}"


def test_the_rooms_of_pipeline_form_no_circle():
    graphlib.TopologicalSorter(PIPELINE).prepare()


def test_no_room_has_too_many_modules():
    folders = {path.parent for path in FILES}
    for folder in folders:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        place = place_of(module_name(folder / "x.py"))
        assert len(modules) <= MAX_MODULES.get(place, MAX_OTHER_MODULES), f"{folder} has {len(modules)} modules"


@pytest.mark.parametrize("name", NAMES)
def test_files_and_functions_are_small(name):
    path = PACKAGE / name
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES or name in LONG, f"edgeopt/{name} has {lines} lines"
    most = MAX_PIPELINE_FUNCTION_LINES if name.startswith("pipeline/") else MAX_FUNCTION_LINES
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > most
        and f"{name}:{node.name}" not in LONG
    ]
    assert not long, f"edgeopt/{name}: {', '.join(long)}"


def catches_all(handler: ast.ExceptHandler) -> bool:
    """Tell whether a handler keeps every exception; one that ends with a bare ``raise`` only cleans up."""
    caught = {word.id for word in ast.walk(handler.type) if isinstance(word, ast.Name)} if handler.type else {"bare"}
    last = handler.body[-1]
    passes_on = isinstance(last, ast.Raise) and last.exc is None
    return bool(caught & {"Exception", "BaseException", "bare"}) and not passes_on


@pytest.mark.parametrize("name", NAMES)
def test_only_two_functions_catch_every_exception(name):
    found = [
        f"{name}:{function.name}"
        for function in [node for node in ast.walk(tree(PACKAGE / name)) if isinstance(node, ast.FunctionDef)]
        for node in ast.walk(function)
        if isinstance(node, ast.ExceptHandler) and catches_all(node)
    ]
    assert found == [one for one in (BOUNDARY, ATTEMPT) if name == one.partition(":")[0]]


def test_the_table_of_sizes_and_of_lone_files_has_no_dead_rows():
    assert {key.partition(":")[0] for key in LONG} <= set(NAMES)
    assert set(ONE_FILE) <= set(NAMES)


@pytest.mark.parametrize("module", ["edgeopt", "edgeopt.cli", "edgeopt.config.profiles", "edgeopt.device.open"])
def test_light_modules_stay_light(module):
    heavy = "torch onnxruntime onnx numpy scipy rich jinja2"
    code = f"import sys, {module}; print(*[name for name in {heavy.split()!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_no_two_test_files_have_one_name():
    """Pytest imports test files by their names alone, and refuses the second one."""
    names = [path.name for path in PACKAGE.parent.joinpath("tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
