"""One multiplexed connection of plain OpenSSH: the Python over there, workers, and files that come and go."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import shlex
import shutil
import subprocess
import tempfile
import threading
import uuid
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.device import file_agent as courier
from edgeopt.device.base import WorkerRefused
from edgeopt.device.process import WORKER_SENTINEL, WorkerProcess, explain_remote, last_line
from edgeopt.device.ssh_errors import explain_connection, ssh_lost
from edgeopt.errors import DeviceError, DeviceLostError

OPTIONS = (
    "BatchMode=yes",  # no question can be answered here
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",  # a cable that was pulled is noticed after 15 s
    "LogLevel=ERROR",  # no banner
)

PERSIST_SECONDS = 60
"""How long the connection outlives its last user: after a kill of this process nothing stays for longer."""

CONNECT_SECONDS = 60.0
PROBE_SECONDS = 120.0
COURIER_SECONDS = 60.0
BLOCK_BYTES = 1 << 20

PYTHONS = (
    "python3", "python", '"$HOME"/edgeopt/bin/python', '"$HOME"/.venv/bin/python', '"$HOME"/venv/bin/python',
    '"$HOME"/*/bin/python',
)  # fmt: skip
"""Where a Python with onnxruntime is looked for, as a shell writes it."""

PROBE = (
    "import importlib.util as u, json, sys; "
    "m = [n for n in ('numpy', 'onnxruntime') if u.find_spec(n) is None]; "
    "m += ['Python 3.10'] if sys.version_info < (3, 10) else []; "
    f"print('{WORKER_SENTINEL.decode()}' + json.dumps([sys.executable, '.'.join(map(str, sys.version_info[:3])), m])); "
    "sys.exit(bool(m))"
)


class Address(NamedTuple):
    """Where to connect; what is None comes from the user's own configuration of OpenSSH."""

    host: str
    user: str | None
    port: int | None

    def options(self) -> list[str]:
        """Return the words of the command line that name it, without the host."""
        return [*(("-l", self.user) if self.user else ()), *(("-p", str(self.port)) if self.port else ())]

    def login(self) -> str:
        """Return the command that connects by hand."""
        return shlex.join(["ssh", *(("-p", str(self.port)) if self.port else ()), self.at_host()])

    def at_host(self) -> str:
        """Return ``user@host``."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def known_as(self) -> str:
        """Return the name in ``known_hosts``."""
        return f"[{self.host}]:{self.port}" if self.port not in (None, 22) else self.host


class Connection:
    """A connection that is there; it is closed with ``close``, or when nobody holds it any more.

    Args:
        uri: How the user names the device; errors begin with it.
        address: Where it is.
        python: The Python program over there; None looks for one.

    Raises:
        DeviceLostError: no connection now, but trying again may help.
        DeviceError: no connection, or no Python with onnxruntime.
    """

    def __init__(self, uri: str, address: Address, python: str | None) -> None:
        self.uri = uri
        self._address = address
        self._mutex = threading.Lock()
        if shutil.which("ssh") is None:
            raise DeviceError(f"{uri}: there is no program `ssh` here. Install OpenSSH's client (openssh-client).")
        folder = tempfile.mkdtemp(prefix="edgeopt-ssh-")
        self._socket = f"{folder}/s"
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._open_master()
            stack.callback(_exit_master, self._ssh("-O", "exit"))
            self.python = self._find_python(python)
            self._courier = stack.enter_context(self._start_courier())
            self._folder = self._ask(do="hello")["folder"]
            self._worker = self.push(Path(__file__).parent.parent / "bench" / "worker.py")
            self.close = weakref.finalize(self, stack.pop_all().close)

    def _ssh(self, *words: str) -> list[str]:
        options = [word for option in OPTIONS for word in ("-o", option)]
        return ["ssh", *options, "-S", self._socket, *self._address.options(), *words, "--", self._address.host]

    def _open_master(self) -> None:
        persist = ("-M", "-o", f"ControlPersist={PERSIST_SECONDS}")
        done, errors = _run([*self._ssh(*persist), "exit 0"], CONNECT_SECONDS)
        if done is None:
            errors = f"ssh timed out after {CONNECT_SECONDS:.0f} s"
        if done is None or done.returncode:
            raise explain_connection(self.uri, self._address.login(), self._address.known_as(), errors)

    def _find_python(self, wanted: str | None) -> str:
        pythons = PYTHONS if wanted is None else (_shell_path(wanted),)
        script = (
            f'for p in {" ".join(pythons)}; do q=$(command -v "$p") || continue; '
            f'"$q" -c {shlex.quote(PROBE)} && break; done; exit 0'
        )
        done, errors = _run([*self._ssh(), _in_shell(script)], PROBE_SECONDS)
        if done is None or done.returncode:
            raise ssh_lost(self.uri, errors)
        found = [
            json.loads(line[len(WORKER_SENTINEL) :])
            for line in done.stdout.splitlines()
            if line.startswith(WORKER_SENTINEL)
        ]
        program = next((path for path, _, missing in found if not missing), None)
        if program is None:
            raise self._no_python(wanted, found, errors)
        return str(program)

    def _no_python(self, wanted: str | None, found: list[Any], errors: str) -> DeviceError:
        if found:
            tried = "; ".join(f"{path} ({version}) lacks {' and '.join(missing)}" for path, version, missing in found)
        elif wanted is not None:
            tried = f"'{wanted}' is no Python program there{f' ({last_line(errors)})' if errors.strip() else ''}"
        else:
            tried = "there is no python3 or python in its PATH"
        return DeviceError(
            f"{self.uri}: no Python 3.10 or newer with numpy and onnxruntime: {tried}. On the device: `python3 -m venv "
            f"~/edgeopt && ~/edgeopt/bin/pip install onnxruntime numpy`, which is found by itself; or name another "
            f"one: `--device '{self.uri.partition('?')[0]}?python=PATH'`."
        )

    def _start_courier(self) -> WorkerProcess:
        text = base64.b64encode(zlib.compress(Path(courier.__file__).read_bytes())).decode()
        code = f"import base64, zlib; exec(zlib.decompress(base64.b64decode('{text}')).decode())"
        return self._process([self.python, "-c", code], {})

    def start_worker(self, variables: Mapping[str, str]) -> WorkerProcess:
        """Start a worker over there; it ends when its stdin does, and so with the connection."""
        return self._process([self.python, self._worker], variables)

    def _process(self, words: list[str], variables: Mapping[str, str]) -> WorkerProcess:
        settings = [f"{name}={value}" for name, value in variables.items()]
        script = f'{shlex.join(["env", *settings, *words])}; echo "edgeopt-exit $?"'
        explain = functools.partial(
            explain_remote, self.uri, ssh_lost
        )  # a bound method would keep this connection alive for ever
        return WorkerProcess([*self._ssh(), _in_shell(script)], {}, explain)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _ask(self, **message: Any) -> dict[str, Any]:
        try:
            return self._courier.ask(message, COURIER_SECONDS)
        except WorkerRefused as refused:
            raise self.refused(refused) from refused

    def refused(self, refused: WorkerRefused) -> DeviceLostError:
        """Return the error for a file that could not be written over there."""
        return DeviceLostError(f"{self.uri}: {refused.reason}. Free some space there and run the same command again.")

    def push(self, path: Path) -> str:
        """Bring a file there, if it is not there yet, and return its path over there.

        Raises:
            DeviceError: it came out wrong.
            DeviceLostError: the connection broke, or the disk there is full.
        """
        with path.open("rb") as stream, self._mutex:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            name = sha256 + path.suffix
            if not self._ask(do="have", name=name, sha256=sha256)["have"]:
                self._send(stream, name, sha256)
        return f"{self._folder}/{name}"

    def _send(self, stream: Any, name: str, sha256: str) -> None:
        stream.seek(0)
        self._ask(do="begin", name=name)
        try:
            while block := stream.read(BLOCK_BYTES):
                self._ask(do="write", name=name, data=base64.b64encode(block).decode())
        except DeviceError:
            with contextlib.suppress(DeviceError):
                self._ask(do="remove", name=name)
            raise
        if not self._ask(do="keep", name=name, sha256=sha256)["kept"]:
            raise DeviceError(f"{self.uri}: a file arrived changed. Run the same command again; check the disk there.")

    def new_path(self, suffix: str) -> str:
        """Return a path over there where nothing is."""
        return f"{self._folder}/{uuid.uuid4().hex}{suffix}"

    def discard(self, there: str) -> None:
        """Remove what a worker wrote for a path over there, half-written or whole; nothing for an empty path."""
        with self._mutex:
            for name in (there.rpartition("/")[2],) if there else ():
                self._ask(do="remove", name=name)
                self._ask(do="remove", name=name + ".part")

    def fetch(self, there: str, here: Path) -> None:
        """Bring a file back whole, and remove it over there.

        Raises:
            DeviceError: it came out wrong.
            DeviceLostError: the connection broke.
        """
        name, digest, offset = there.rpartition("/")[2], hashlib.sha256(), 0
        part = here.with_name(here.name + ".part")
        with self._mutex:
            with part.open("wb") as stream:
                while block := base64.b64decode(
                    self._ask(do="read", name=name, offset=offset, bytes=BLOCK_BYTES)["data"]
                ):
                    stream.write(block)
                    digest.update(block)
                    offset += len(block)
            right = digest.hexdigest() == self._ask(do="hash", name=name)["sha256"]
            self._ask(do="remove", name=name)
        if not right:
            raise DeviceError(f"{self.uri}: a file arrived changed. Run the same command again; check the disk there.")
        part.replace(here)


def _in_shell(script: str) -> str:
    """Return a command for whatever login shell there is."""
    return f"exec sh -c {shlex.quote(script)}"


def _shell_path(path: str) -> str:
    """Quote a path for a shell, but let ``~/`` be the home over there."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _run(command: list[str], seconds: float) -> tuple[subprocess.CompletedProcess[bytes] | None, str]:
    """Run a client to its end; None where it took too long. Returns what it wrote to stderr, too.

    A file takes stderr: the connection that stays behind keeps it open, and a pipe would never end.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, timeout=seconds,
                start_new_session=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            done = None
        errors.seek(0)
        return done, errors.read().decode(errors="replace")


def _exit_master(command: list[str]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       timeout=10, check=False)  # fmt: skip
