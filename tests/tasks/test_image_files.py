"""One image file as pixels: every mode is read right or refused by name, also for a given `.onnx`."""

import numpy as np
import pytest
from PIL import Image

from edgeopt.errors import DataError, InputError
from edgeopt.tasks.image_files import ImageFit, make_scaling, read_image

RAMP = np.linspace(0, 255, 16).astype(np.uint8).reshape(4, 4)
COLOURS = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 90)], -1)


def saved(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_become_eight_instead_of_white(tmp_path, ending):
    path = saved(tmp_path / f"a.{ending}", Image.fromarray(RAMP.astype(np.uint16) * 257))
    assert np.array_equal(read_image(path, 1)[..., 0], RAMP)
    assert np.array_equal(read_image(path, 3)[..., 2], RAMP)


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [("RGB", 0), ("RGBA", 0), ("P", 60), ("CMYK", 0), ("YCbCr", 4), ("L", 0), ("LA", 0), ("1", 255)],
)
def test_other_modes_become_colours_and_grey(tmp_path, mode, tolerance):
    image = Image.fromarray(COLOURS).convert(mode)
    path = saved(tmp_path / "a.tiff", image)
    expected = np.asarray(image.convert("RGB"))
    assert np.abs(read_image(path, 3).astype(int) - expected).max() <= tolerance
    assert read_image(path, 1).shape == (4, 4, 1)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.fromarray(COLOURS).convert("P")
    path = saved(tmp_path / "a.png", image, transparency=bytes([0, 128] + [255] * 254))
    assert np.array_equal(read_image(path, 3), np.asarray(image.convert("RGB")))


def test_an_image_that_lies_on_its_side_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    tall = np.zeros((4, 8, 3), np.uint8)
    tall[:, 0] = 255
    path = saved(tmp_path / "a.png", Image.fromarray(tall), exif=exif)
    pixels = read_image(path, 3)
    assert pixels.shape == (8, 4, 3)
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 0).all()
    deep = saved(tmp_path / "b.png", Image.fromarray(tall[..., 0].astype(np.uint16) * 257), exif=exif)
    assert np.array_equal(read_image(deep, 1)[..., 0], pixels[..., 0])


@pytest.mark.parametrize("values", [np.ones((2, 2), np.int32), np.ones((2, 2), np.float32)], ids=["int32", "float32"])
def test_pixels_of_no_known_range_are_refused_by_name(tmp_path, values):
    path = saved(tmp_path / "depth.tiff", Image.fromarray(values))
    with pytest.raises(DataError, match=r"depth\.tiff has pixels that are .* of no known range"):
        read_image(path, 1)


def test_damaged_files_are_named(tmp_path):
    whole = saved(tmp_path / "a.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))
    for name, content in (("cut.png", whole.read_bytes()[:4000]), ("text.png", b"no image"), ("empty.jpg", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} cannot be read as an image: .*Repair it, or take it out"):
            read_image(tmp_path / name, 3)


def test_sizes_are_fitted_as_said(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    path = saved(tmp_path / "a.png", Image.fromarray(wide))
    assert (read_image(path, 3, ImageFit(20, 20, "crop")) == 255).all()
    narrow = read_image(path, 3, ImageFit(15, 15, "crop", 0.75))
    assert (narrow == 255).all()
    stretched = read_image(path, 1, ImageFit(20, 30, "stretch"))[10, :, 0]
    assert (stretched[:8].max(), stretched[13:17].min(), stretched[22:].max()) == (0, 255, 0)
    padded = read_image(path, 1, ImageFit(60, 60, "pad"))[..., 0]
    assert (padded[:20].max(), padded[40:].max(), padded[25, 30]) == (0, 0, 255)


def test_a_division_by_zero_and_wrong_counts_are_refused():
    with pytest.raises(InputError, match="std has a zero"):
        make_scaling((0.5,), (0.0,), 3)
    with pytest.raises(InputError, match="mean has 2 numbers; give one, or 3"):
        make_scaling((0.5, 0.5), None, 3)
