"""Download the full Fashion-MNIST set into a folder for ``EDGEOPT_DATA``, and check its SHA-256.

python tools/fetch_data.py DIR
EDGEOPT_DATA=DIR edgeopt build --target phone
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import urllib.request
import zlib
from pathlib import Path

import click

BASE_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of each file's content without the gzip around it, which differs between mirrors."""


def hash_content(data: bytes) -> str:
    """Return the SHA-256 of gzipped data's content, or of the data itself if it is not gzip."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        data = gzip.decompress(data)
    return hashlib.sha256(data).hexdigest()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Download the files that are missing, or differ from the official ones, into FOLDER/fashion-mnist."""
    target = folder / "fashion-mnist"
    target.mkdir(parents=True, exist_ok=True)
    for name, expected in FILES.items():
        path = target / name
        if path.exists() and hash_content(path.read_bytes()) == expected:
            print(f"{name}: already there")
            continue
        print(f"{name}: downloading {BASE_URL}{name}")
        with urllib.request.urlopen(BASE_URL + name, timeout=60) as answer:
            data = answer.read()
        found = hash_content(data)
        if found != expected:
            raise click.ClickException(
                f"{name}: the SHA-256 of the content is {found}, not {expected}; the download was discarded."
            )
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(path)


if __name__ == "__main__":
    main()
