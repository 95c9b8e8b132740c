#!/usr/bin/env python3
"""Download the three files of onnxruntime-web that `browser:` needs, with npm.

tools/fetch_web_runtime.py --out FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.24.3"
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")


def main() -> None:
    """Download the package, without running any of it, and keep three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    parser.add_argument("--version", default=VERSION, help="version of onnxruntime-web (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        package = f"onnxruntime-web@{options.version}"
        try:
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"npm could not download {package}: {error}. Install npm, or copy {', '.join(FILES)} by hand")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None, name
                (options.out / name).write_bytes(member.read())
    print(f"--device 'browser:?runtime={options.out.resolve()}'")


if __name__ == "__main__":
    main()
