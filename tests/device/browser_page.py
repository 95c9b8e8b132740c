"""A real headless Chromium that opens a page."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from ssh_server import need_system

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


@contextlib.contextmanager
def chromium(address: str, profile: Path, *flags: str):
    """Open a page; the program is a wrapper, so its whole group is ended."""
    need_system(CHROMIUM, "Chromium (chromium-headless-shell)")
    always = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [CHROMIUM, *always, *flags, "--remote-debugging-port=0", address],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def address_of(device) -> str:
    """Wait until a device serves, and return its page's address."""
    while device._server is None:
        time.sleep(0.05)
    return device._server.address
