"""Downloading street scenes from a server: what is there stays, and what differs is named."""

import functools
import http.server
import importlib.util
import threading
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "tools" / "fetch_data.py"
NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture
def fetch_data():
    spec = importlib.util.spec_from_file_location("fetch_data_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def served(tmp_path):
    """Serve three scenes of twice the size; return the address and the requests so far."""
    random = np.random.RandomState(0)
    for folder, shape in (("train", (360, 480, 3)), ("trainannot", (360, 480))):
        (tmp_path / "served" / folder).mkdir(parents=True)
        for name in NAMES:
            pixels = random.randint(0, 12, shape).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "served" / folder / name)
    lines = [f"/SegNet/CamVid/train/{name} /SegNet/CamVid/trainannot/{name}\n" for name in NAMES]
    (tmp_path / "served" / "train.txt").write_text("".join(lines))
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", requests
    server.shutdown()
    server.server_close()


@pytest.fixture
def scenes(fetch_data, served, tmp_path, monkeypatch):
    """Return a folder with the scenes, downloaded, and the hash of their pixels."""
    monkeypatch.setattr(fetch_data, "CAMVID_URL", served[0])
    monkeypatch.setattr(fetch_data, "CAMVID_PIXELS", {"train": "unknown"})
    with pytest.raises(click.ClickException, match="the SHA-256 of the pixels is ") as failed:
        fetch_data.fetch_camvid(tmp_path / "data")
    found = str(failed.value.message).split("pixels is ")[1].split(",")[0]
    monkeypatch.setattr(fetch_data, "CAMVID_PIXELS", {"train": found})
    return tmp_path / "data" / "CamVid"


def test_images_are_means_of_boxes_and_labels_stay_labels(scenes, tmp_path):
    large = np.asarray(Image.open(tmp_path / "served" / "train" / "a.png")).astype(float)
    small = np.asarray(Image.open(scenes / "train" / "a.png"))
    assert small.shape == (180, 240, 3)
    assert np.abs(small - large.reshape(180, 2, 240, 2, 3).mean((1, 3))).max() <= 1  # rounded along each axis
    labels = np.asarray(Image.open(scenes / "trainannot" / "a.png"))
    large_labels = np.asarray(Image.open(tmp_path / "served" / "trainannot" / "a.png"))
    blocks = large_labels.reshape(180, 2, 240, 2).transpose(0, 2, 1, 3).reshape(180, 240, 4)
    assert (labels[..., None] == blocks).any(-1).all()


def test_only_what_is_missing_is_downloaded(fetch_data, served, scenes):
    (scenes / "train" / "b.png").unlink()
    served[1].clear()
    fetch_data.fetch_camvid(scenes.parent)
    assert sorted(served[1]) == ["/train.txt", "/train/b.png"]
    assert not list(scenes.rglob("*.partial"))


def test_a_changed_file_is_noticed(fetch_data, scenes):
    Image.new("L", (240, 180)).save(scenes / "trainannot" / "c.png")
    with pytest.raises(click.ClickException, match="Remove this folder and trainannot"):
        fetch_data.fetch_camvid(scenes.parent)


def test_a_server_that_is_not_there_is_a_sentence(fetch_data, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_data, "CAMVID_URL", "http://127.0.0.1:9/")
    with pytest.raises(click.ClickException, match=r"cannot be downloaded .* goes on from there"):
        fetch_data.fetch_camvid(tmp_path / "data")
