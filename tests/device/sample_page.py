"""The page of the browser sample, opened as a person would: a file is chosen, and what it shows is reported."""

import contextlib
import http.server
import json
import queue
import threading

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
    const canvas = document.getElementById("picture");
    if (!canvas.hidden) {
      const { width, height } = canvas;
      const colours = canvas.getContext("2d").getImageData(0, 0, width, height).data;
      const names = new Map();
      for (const { style, textContent } of document.querySelectorAll("#legend span"))
        names.set(style.borderColor.match(/\\d+/g).join(), textContent);
      const nameAt = (_, place) => names.get(colours.slice(4 * place, 4 * place + 3).join()) ?? "?";
      found.picture = { width, height, names: Array.from({ length: width * height }, nameAt) };
    }
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
