"""A real disk that is too small, and a run that fills it."""

import contextlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_models import a_network, a_run_target

from edgeopt.bench.outputs import run_model, write_batches
from edgeopt.errors import DeviceLostError, is_disk_full


@contextlib.contextmanager
def mount_small_disk(folder: Path, kilobytes: int):
    """Mount a disk of a given size on a new folder until the block ends; skip if that is not allowed."""
    if os.getuid():
        pytest.skip("mounting a small disk needs root")
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill_disk(device, folder: Path) -> list[str]:
    """Run a model whose outputs don't fit on the device's disk, then one whose inputs don't; return both messages."""
    messages = []
    for rows in (600, 6000):  # 77 kB become 154 kB
        write_batches(folder / "in.npz", [{"x": np.zeros((rows, 32), np.float32)}])
        with pytest.raises(DeviceLostError, match=r"No space left on device.*Free some space there") as caught:
            run_model(a_network(folder / "m.onnx"), folder / "in.npz", folder / "out.npz", a_run_target(device=device))
        assert not is_disk_full(caught.value)  # not this machine's disk
        messages.append(str(caught.value))
    return messages
