"""A real headless Chromium that opens a page."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from ssh_server import require_system

CHROMIUM = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)


@contextlib.contextmanager
def open_chromium(address: str, profile: Path, *flags: str):
    """Open a page until the block ends; the program is a wrapper, so its whole process group is killed."""
    require_system(CHROMIUM, "Chromium (chromium-headless-shell)")
    default_flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        [CHROMIUM, *default_flags, *flags, "--remote-debugging-port=0", address],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_address(device) -> str:
    """Wait until a device serves its page, and return the address."""
    while device._server is None:
        time.sleep(0.05)
    return device._server.address
