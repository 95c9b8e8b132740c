"""One multiplexed connection of plain OpenSSH: finds a Python on the device, starts workers, copies files."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import logging
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
import uuid
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgeopt.device import file_agent
from edgeopt.device.base import WorkerRefused
from edgeopt.device.process import WORKER_SENTINEL, WorkerProcess, explain_remote_exit
from edgeopt.device.ssh_errors import explain_connection, explain_lost_connection
from edgeopt.errors import DeviceError, DeviceLostError, last_line

OPTIONS = (
    "BatchMode=yes",  # nobody can answer a question here
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",  # a pulled cable is noticed after 15 s
    "LogLevel=ERROR",  # no banner
)

PERSIST_SECONDS = 60
"""How long the connection outlives its last user: nothing stays longer than this after this process is killed."""

CONNECT_SECONDS = 60.0
PROBE_SECONDS = 120.0
FILE_AGENT_SECONDS = 60.0
BLOCK_BYTES = 1 << 20

PYTHONS = (
    "python3", "python", '"$HOME"/edgeopt/bin/python', '"$HOME"/.venv/bin/python', '"$HOME"/venv/bin/python',
    '"$HOME"/*/bin/python',
)  # fmt: skip
"""Programs that may be a Python with onnxruntime, in shell syntax."""

PROBE = (
    "import importlib.util as u, json, sys; "
    "m = [n for n in ('numpy', 'onnxruntime') if u.find_spec(n) is None]; "
    "m += ['Python 3.10'] if sys.version_info < (3, 10) else []; "
    f"print('{WORKER_SENTINEL.decode()}' + json.dumps([sys.executable, '.'.join(map(str, sys.version_info[:3])), m])); "
    "sys.exit(bool(m))"
)

_logger = logging.getLogger(__name__)


class Address(NamedTuple):
    """The host to connect to; None leaves a field to the user's OpenSSH configuration."""

    host: str
    user: str | None
    port: int | None

    def options(self) -> list[str]:
        """Return the options of ``ssh`` for user and port."""
        return [*(("-l", self.user) if self.user else ()), *(("-p", str(self.port)) if self.port else ())]

    def login_command(self) -> str:
        """Return the command with which a user connects by hand."""
        return shlex.join(["ssh", *(("-p", str(self.port)) if self.port else ()), self.user_at_host()])

    def user_at_host(self) -> str:
        """Return ``user@host``."""
        return f"{self.user}@{self.host}" if self.user else self.host

    def known_hosts_name(self) -> str:
        """Return the name in ``known_hosts``."""
        return f"[{self.host}]:{self.port}" if self.port not in (None, 22) else self.host


class Connection:
    """An open connection, until ``close`` is called or nothing refers to it any more.

    Args:
        uri: How the user names the device; errors begin with it.
        address: Its address.
        python: The Python program on the device; None to look for one.

    Raises:
        DeviceLostError: no connection, but trying again may help.
        DeviceError: no connection, or no Python with onnxruntime.
    """

    def __init__(self, uri: str, address: Address, python: str | None) -> None:
        self.uri = uri
        self._address = address
        self._mutex = threading.Lock()
        if shutil.which("ssh") is None:
            raise DeviceError(f"{uri}: `ssh` is not installed here. Install OpenSSH's client (openssh-client).")
        folder = tempfile.mkdtemp(prefix="edgeopt-ssh-")
        self._socket = f"{folder}/s"
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._open_master()
            stack.callback(_exit_master, self._ssh("-O", "exit"))
            self.python = self._find_python(python)
            self._file_agent = stack.enter_context(self._start_file_agent())
            self._folder = self._ask(do="hello")["folder"]
            self._worker = self.push(Path(__file__).parent.parent / "bench" / "worker.py")
            stack.callback(_logger.debug, "%s: closing the connection", uri)
            self.close = weakref.finalize(self, stack.pop_all().close)

    def _ssh(self, *words: str) -> list[str]:
        options = [word for option in OPTIONS for word in ("-o", option)]
        return ["ssh", *options, "-S", self._socket, *self._address.options(), *words, "--", self._address.host]

    def _open_master(self) -> None:
        persist = ("-M", "-o", f"ControlPersist={PERSIST_SECONDS}")
        begin = time.monotonic()
        done, errors = _run([*self._ssh(*persist), "exit 0"], CONNECT_SECONDS)
        if done is None:
            errors = f"ssh timed out after {CONNECT_SECONDS:.0f} s"
        if done is None or done.returncode:
            raise explain_connection(self.uri, self._address.login_command(), self._address.known_hosts_name(), errors)
        _logger.debug("%s: connected in %.3f s", self.uri, time.monotonic() - begin)

    def _find_python(self, wanted: str | None) -> str:
        pythons = PYTHONS if wanted is None else (_shell_path(wanted),)
        script = (
            f'for p in {" ".join(pythons)}; do q=$(command -v "$p") || continue; '
            f'"$q" -c {shlex.quote(PROBE)} && break; done; exit 0'
        )
        done, errors = _run([*self._ssh(), _in_shell(script)], PROBE_SECONDS)
        if done is None or done.returncode:
            raise explain_lost_connection(self.uri, errors)
        found = [
            json.loads(line[len(WORKER_SENTINEL) :])
            for line in done.stdout.splitlines()
            if line.startswith(WORKER_SENTINEL)
        ]
        program = next((path for path, _, missing in found if not missing), None)
        if program is None:
            raise self._no_python(wanted, found, errors)
        _logger.debug("%s: its Python is %s", self.uri, program)
        return str(program)

    def _no_python(self, wanted: str | None, found: list[Any], errors: str) -> DeviceError:
        if found:
            tried = "; ".join(f"{path} ({version}) lacks {' and '.join(missing)}" for path, version, missing in found)
        elif wanted is not None:
            tried = f"'{wanted}' is not a Python program there{f' ({last_line(errors)})' if errors.strip() else ''}"
        else:
            tried = "there is no python3 or python in its PATH"
        return DeviceError(
            f"{self.uri}: no Python 3.10 or newer with numpy and onnxruntime: {tried}. Run on the device: "
            f"`python3 -m venv ~/edgeopt && ~/edgeopt/bin/pip install onnxruntime numpy`, where edgeopt looks; or name "
            f"another Python: `--device '{self.uri.partition('?')[0]}?python=PATH'`."
        )

    def _start_file_agent(self) -> WorkerProcess:
        text = base64.b64encode(zlib.compress(Path(file_agent.__file__).read_bytes())).decode()
        code = f"import base64, zlib; exec(zlib.decompress(base64.b64decode('{text}')).decode())"
        return self._process([self.python, "-c", code], {}, log_as=f"the file agent on {self.uri}")

    def start_worker(self, variables: Mapping[str, str]) -> WorkerProcess:
        """Start a worker on the device; it ends when its stdin does, and so with the connection."""
        return self._process([self.python, self._worker], variables)

    def _process(self, command: list[str], variables: Mapping[str, str], log_as: str | None = None) -> WorkerProcess:
        settings = [f"{name}={value}" for name, value in variables.items()]
        script = f'{shlex.join(["env", *settings, *command])}; echo "edgeopt-exit $?"'
        # a bound method would keep this connection alive forever
        explain = functools.partial(explain_remote_exit, self.uri, explain_lost_connection)
        return WorkerProcess([*self._ssh(), _in_shell(script)], {}, explain, log_as)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _ask(self, **message: Any) -> dict[str, Any]:
        try:
            return self._file_agent.ask(message, FILE_AGENT_SECONDS)
        except WorkerRefused as refused:
            raise self.explain_refusal(refused) from refused

    def explain_refusal(self, refused: WorkerRefused) -> DeviceLostError:
        """Return the error for a file that could not be written on the device."""
        return DeviceLostError(f"{self.uri}: {refused.reason}. Free some space there and run the same command again.")

    def push(self, path: Path) -> str:
        """Send a file, if the device does not have it yet, and return its path there.

        Raises:
            DeviceError: it arrived corrupted.
            DeviceLostError: the connection broke, or the disk there is full.
        """
        with path.open("rb") as stream, self._mutex:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            name = sha256 + path.suffix
            if not self._ask(do="have", name=name, sha256=sha256)["have"]:
                begin = time.monotonic()
                self._send(stream, name, sha256)
                seconds = time.monotonic() - begin
                _logger.debug("%s: sent %s, %d bytes in %.3f s", self.uri, path.name, stream.tell(), seconds)
            _logger.debug("%s: %s is %s there", self.uri, path.name, name)
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
            raise DeviceError(
                f"{self.uri}: a file arrived corrupted. Check the disk there, and run the same command again."
            )

    def make_path(self, suffix: str) -> str:
        """Return an unused path on the device."""
        return f"{self._folder}/{uuid.uuid4().hex}{suffix}"

    def discard(self, remote_path: str) -> None:
        """Remove a file that a worker wrote on the device, complete or not; an empty path is ignored."""
        with self._mutex:
            for name in (remote_path.rpartition("/")[2],) if remote_path else ():
                self._ask(do="remove", name=name)
                self._ask(do="remove", name=name + ".part")

    def fetch(self, remote_path: str, target: Path) -> None:
        """Copy a file from the device, and remove it there.

        Raises:
            DeviceError: it arrived corrupted.
            DeviceLostError: the connection broke.
        """
        name, digest, offset, begin = remote_path.rpartition("/")[2], hashlib.sha256(), 0, time.monotonic()
        part = target.with_name(target.name + ".part")
        with self._mutex:
            with part.open("wb") as stream:
                while block := base64.b64decode(
                    self._ask(do="read", name=name, offset=offset, bytes=BLOCK_BYTES)["data"]
                ):
                    stream.write(block)
                    digest.update(block)
                    offset += len(block)
            is_intact = digest.hexdigest() == self._ask(do="hash", name=name)["sha256"]
            self._ask(do="remove", name=name)
        if not is_intact:
            raise DeviceError(
                f"{self.uri}: a file arrived corrupted. Check the disk there, and run the same command again."
            )
        part.replace(target)
        _logger.debug("%s: fetched %s, %d bytes in %.3f s", self.uri, target.name, offset, time.monotonic() - begin)


def _in_shell(script: str) -> str:
    """Return a command that works in any login shell."""
    return f"exec sh -c {shlex.quote(script)}"


def _shell_path(path: str) -> str:
    """Quote a path for a shell, but let ``~/`` be the home folder on the device."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _run(command: list[str], seconds: float) -> tuple[subprocess.CompletedProcess[bytes] | None, str]:
    """Run a client to its end and return it (None if it took too long) and its stderr.

    Stderr goes to a file: the connection that stays in the background keeps it open, so a pipe would never end.
    """
    begin = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, timeout=seconds,
                start_new_session=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            done = None
        how = "no end" if done is None else f"exit code {done.returncode}"
        _logger.debug("%s: %s after %.3f s", shlex.join(command), how, time.monotonic() - begin)
        errors.seek(0)
        return done, errors.read().decode(errors="replace")


def _exit_master(command: list[str]) -> None:
    _logger.debug("%s", shlex.join(command))
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       timeout=10, check=False)  # fmt: skip
