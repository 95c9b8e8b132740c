"""A real disk that is too small, and a run that fills it."""

import contextlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tiny_models import a_network, a_quick_profile

from edgeopt.bench.outputs import run_model, write_batches
from edgeopt.errors import DeviceLostError, is_disk_full


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int):
    """Mount a disk of a size on a new folder, for a block; skip where that is not allowed."""
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


def overflow(device, folder: Path) -> list[str]:
    """Run a model on inputs whose outputs do not fit over there, and on inputs that do not; return what was said."""
    said = []
    for rows in (600, 6000):  # 77 kB become 154 kB
        write_batches(folder / "in.npz", [{"x": np.zeros((rows, 32), np.float32)}])
        with pytest.raises(DeviceLostError, match=r"No space left on device.*Free some space there") as caught:
            run_model(a_network(folder / "m.onnx"), folder / "in.npz", folder / "out.npz", device, a_quick_profile())
        assert not is_disk_full(caught.value)  # of this machine
        said.append(str(caught.value))
    return said
