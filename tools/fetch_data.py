"""Fetch the full Fashion-MNIST set from its public home into a folder for ``EDGEOPT_DATA``, and check it.

python tools/fetch_data.py DIR
EDGEOPT_DATA=DIR edgeopt build --target phone
"""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path

import click

HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FILES = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
"""SHA-256 of each official file."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Download what is missing, or differs from the official files, into FOLDER/fashion-mnist."""
    target = folder / "fashion-mnist"
    target.mkdir(parents=True, exist_ok=True)
    for name, expected in FILES.items():
        path = target / name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == expected:
            print(f"{name}: already there")
            continue
        print(f"{name}: fetching {HOME}{name}")
        with urllib.request.urlopen(HOME + name, timeout=60) as answer:
            data = answer.read()
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise click.ClickException(f"{name}: SHA-256 is {found}, not {expected}; the download is not used.")
        partial = path.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(path)


if __name__ == "__main__":
    main()
