"""The browser sample of a bundle in a real headless Chromium: its self-test, and its answer for a file."""

import contextlib
import http.server
import json
import queue
import shutil
import threading

import numpy as np
import pytest
from app_bundles import draw_pixels, write_app_bundle
from browser_page import open_chromium
from PIL import Image

SECONDS = 120
REPORTER = b"""
<script type="module">
  const until = async (id, done) => {
    while (!done(document.getElementById(id).textContent)) await new Promise((next) => setTimeout(next, 50));
    return document.getElementById(id).textContent;
  };
  const found = { check: await until("check", (text) => text !== "self-test: running") };
  const file = await fetch("/file");
  if (file.ok && found.check === "self-test: passed") {
    const transfer = new DataTransfer();
    transfer.items.add(new File([await file.blob()], "file"));
    const field = document.getElementById("file");
    field.files = transfer.files;
    field.dispatchEvent(new Event("change"));
    found.answer = await until("answer", (text) => text !== "");
  }
  await fetch("/found", { method: "POST", body: JSON.stringify(found) });
</script>
"""
"""What the test adds to the page: it chooses a file as a person would, and reports what the page shows."""


@contextlib.contextmanager
def serve(bundle, file):
    """Serve a bundle and a file for the page; yield the address and the queue of what was reported."""
    reports = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(bundle))

        def do_GET(self):
            page = self.path == "/samples/browser/"
            if not page and self.path != "/file":
                return super().do_GET()
            if self.path == "/file" and file is None:
                return self.send_error(404)
            data = (bundle / "samples/browser/index.html").read_bytes() + REPORTER if page else file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return None

        def do_POST(self):
            reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/samples/browser/", reports
        server.shutdown()


@pytest.fixture
def open_sample(runtime, tmp_path):
    """Return a function that opens the page of a bundle, and returns what it shows."""

    def opened(bundle, file=None):
        shutil.copytree(runtime, bundle / "samples" / "browser", dirs_exist_ok=True)
        with serve(bundle, file) as (address, reports), open_chromium(address, tmp_path / "profile"):
            return reports.get(timeout=SECONDS)

    return opened


def answers_of(bundle):
    return json.loads((bundle / "manifest.json").read_text())["answers"]


def test_it_passes_its_self_test_and_answers_for_an_image_of_another_size(open_sample, tmp_path):
    bundle = write_app_bundle(tmp_path, "images")
    large = np.kron(draw_pixels(2), np.ones((3, 3, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.png")
    found = open_sample(bundle, tmp_path / "large.png")
    assert found["check"] == "self-test: passed"
    label = next(answer["label"] for answer in answers_of(bundle) if answer["sample"] == 2)
    assert found["answer"].startswith(f"{label}: ")


def test_it_answers_for_a_sound(open_sample, tmp_path):
    bundle = write_app_bundle(tmp_path, "sounds")
    found = open_sample(bundle, bundle / "golden" / "input-0-1.wav")
    assert found["check"] == "self-test: passed"
    label = next(answer["label"] for answer in answers_of(bundle) if answer["sample"] == 1)
    assert found["answer"].startswith(f"{label}: ")


@pytest.mark.parametrize(
    ("field", "value", "mistake"),
    [
        ("color", "rgb", "preprocessing of 'x' is off by "),
        ("resize", "stretch", "resizing of 'x' is off by "),
        ("mean", [0.0], "preprocessing of 'x' is off by "),
    ],
)
def test_a_mistake_in_preprocessing_is_shown(open_sample, tmp_path, field, value, mistake):
    bundle = write_app_bundle(tmp_path, "class maps")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["inputs"][0]["preprocessing"][field] = value
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert mistake in open_sample(bundle)["check"]
