"""Devices for tests: a real OpenSSH server, and phones behind adb's protocol. Programs of a bundle's samples."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
import pytest
from adb_server import Server as AdbServer
from app_bundles import write_app_bundle
from browser_page import open_chromium
from sample_page import serve
from ssh_server import SSHD, Server, require_system

from edgeopt.device import ssh_connection

ROOT = Path(__file__).parents[2]
PAGE_SECONDS = 120
HEADERS = Path(os.environ.get("ONNXRUNTIME_INCLUDE") or "/usr/include/onnxruntime")
PACKAGES = ("onnxruntime-node@1.24.3", "sharp@0.34.5")


@pytest.fixture
def sshd(monkeypatch):
    """Return a running server that the ``ssh`` in PATH is configured for."""
    require_system(SSHD, "OpenSSH's server (openssh-server)")
    require_system(shutil.which("ssh"), "OpenSSH's client (openssh-client)")
    with tempfile.TemporaryDirectory(prefix="edgeopt-sshd-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder))
        monkeypatch.setenv("PATH", str(server.folder / "bin"), prepend=os.pathsep)
        yield server
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def short_timeouts(monkeypatch):
    """Give up on a silent server after three seconds."""
    options = ("BatchMode=yes", "ConnectTimeout=3", "ServerAliveInterval=1", "ServerAliveCountMax=3", "LogLevel=ERROR")
    assert {word.partition("=")[0] for word in options} == {word.partition("=")[0] for word in ssh_connection.OPTIONS}
    monkeypatch.setattr(ssh_connection, "OPTIONS", options)


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """Return a folder with the native runner and its library, built for this machine."""
    require_system(shutil.which("cc"), "a C compiler")
    folder = tmp_path_factory.mktemp("native")
    subprocess.run([sys.executable, ROOT / "tools" / "build_runner.py", "--out", folder], check=True)
    return folder


@pytest.fixture
def phones(tmp_path, monkeypatch):
    """Return the server that `adb` talks to, with one phone."""
    require_system(shutil.which("adb"), "Android's platform tools (adb)")
    with AdbServer(tmp_path / "phone", {"SERIAL1": "device"}) as server:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(server.port))
        yield server


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """Return a folder with onnxruntime-web: downloaded by npm, or named by EDGEOPT_WEB_RUNTIME."""
    given = os.environ.get("EDGEOPT_WEB_RUNTIME")
    if given:
        return Path(given)
    require_system(shutil.which("npm"), "npm")
    folder = tmp_path_factory.mktemp("runtime")
    subprocess.run([sys.executable, ROOT / "tools" / "fetch_web_runtime.py", "--out", folder], check=True)
    return folder


@pytest.fixture
def open_sample(runtime, tmp_path):
    """Return a function that opens the page of a bundle, and returns what it shows."""

    def opened(bundle, file=None):
        shutil.copytree(runtime, bundle / "samples" / "browser", dirs_exist_ok=True)
        with serve(bundle, file) as (address, reports), open_chromium(address, tmp_path / "profile"):
            return reports.get(timeout=PAGE_SECONDS)

    return opened


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """Return a folder with the packages that the sample needs, without having run any script of theirs."""
    require_system(shutil.which("npm"), "npm")
    require_system(shutil.which("node"), "Node.js")
    folder = tmp_path_factory.mktemp("node")
    (folder / "package.json").write_text("{}")
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--silent")
    subprocess.run(["npm", "install", *options, *PACKAGES], cwd=folder, check=True, timeout=300)
    return folder / "node_modules"


@pytest.fixture
def run_node(packages):
    def run(bundle, *arguments):
        modules = bundle / "samples" / "node" / "node_modules"
        if not modules.exists():
            modules.symlink_to(packages, target_is_directory=True)
        command = ["node", bundle / "samples" / "node" / "run.mjs", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture(scope="session")
def onnxruntime_root(tmp_path_factory):
    """Return a folder like a release of ONNX Runtime: headers from the system, the library from the Python package."""
    require_system((HEADERS / "onnxruntime_cxx_api.h").exists(), "the headers of ONNX Runtime (libonnxruntime-dev)")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    require_system(library, "onnxruntime with a shared library of its own")
    root = tmp_path_factory.mktemp("onnxruntime")
    (root / "lib").mkdir()
    (root / "include").symlink_to(HEADERS, target_is_directory=True)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # for the linker, and for the program
        (root / "lib" / name).symlink_to(library)
    return root


@pytest.fixture(scope="session")
def program(onnxruntime_root, tmp_path_factory):
    """Return the program, built without a warning."""
    require_system(shutil.which("cmake"), "cmake")
    require_system(shutil.which("c++"), "a C++ compiler")
    sources = write_app_bundle(tmp_path_factory.mktemp("app"), "sounds") / "samples" / "cpp"
    options = (f"-DONNXRUNTIME_ROOT={onnxruntime_root}", "-DCMAKE_CXX_FLAGS=-Werror")
    done = subprocess.run(
        ["cmake", "-S", sources, "-B", sources / "build", *options], capture_output=True, text=True, check=False
    )
    if "was not found" in done.stderr:
        require_system(False, done.stderr)
    assert done.returncode == 0, done.stderr
    built = subprocess.run(
        ["cmake", "--build", sources / "build"], capture_output=True, text=True, timeout=600, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return sources / "build" / "run"


@pytest.fixture
def run_program(program):
    def run(bundle, *arguments):
        copy = bundle / "samples" / "cpp" / "build" / "run"
        if not copy.exists():
            copy.parent.mkdir()
            shutil.copy(program, copy)
        return subprocess.run([copy, *arguments], capture_output=True, text=True, timeout=120, check=False)

    return run
