"""Golden inputs as images and sounds: what preprocessing makes of these files are exactly the golden inputs."""

import io
import wave

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgeopt.bundle.raw_inputs import input_of_pixels, make_raw, make_resized, pixels_of
from edgeopt.bundle.resize import fit_image, resize_image
from edgeopt.errors import DataError
from edgeopt.records.preprocessing import ImagePreprocessing, SoundPreprocessing
from edgeopt.tasks.image_files import ImageFit, read_image

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
WAYS = {
    "imagenet": ImagePreprocessing(height=20, width=24, **IMAGENET),
    "bgr bytes": ImagePreprocessing(height=20, width=24, color="bgr", scale=1.0, mean=(104.0, 117.0, 123.0)),
    "grey": ImagePreprocessing(height=20, width=24, color="gray"),
    "channels last": ImagePreprocessing(height=20, width=24, layout="nhwc", mean=(0.5,), std=(0.5,)),
    "uint8": ImagePreprocessing(height=20, width=24, layout="nhwc", scale=1.0, dtype="uint8"),
    "own size": ImagePreprocessing(**IMAGENET),
    "padded": ImagePreprocessing(height=20, width=24, resize="pad"),
    "middle": ImagePreprocessing(height=20, width=24, resize="crop", crop_ratio=0.875, **IMAGENET),
}


def photo(height=20, width=24, channels=3, seed=0):
    """A smooth picture in which every channel, side and corner differs."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(3 * rows + channel + seed) + columns * (channel + 1) for channel in range(channels)]
    picture = np.stack(waves, axis=-1)
    return np.rint(255 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)


def decoded(file: bytes, channels: int):
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image).reshape(image.height, image.width, channels)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_an_app_that_follows_the_preprocessing_gets_the_golden_input_from_the_image(how):
    batch = np.concatenate(
        [input_of_pixels(photo(channels=how.channels, seed=seed), without_size(how)) for seed in (0, 1)]
    )
    raw = make_raw("x", batch, how)
    again = np.concatenate([input_of_pixels(decoded(file, how.channels), how) for file in raw.files])
    np.testing.assert_array_equal(again, raw.values)
    assert raw.values.dtype == batch.dtype
    np.testing.assert_allclose(raw.values, batch, atol=1e-5)


def without_size(how):
    """The same scaling for an image that has the size of the input already."""
    return ImagePreprocessing(
        color=how.color, layout=how.layout, scale=how.scale, mean=how.mean, std=how.std, dtype=how.dtype
    )


@pytest.mark.parametrize(
    ("values", "how", "reason"),
    [
        (np.full((1, 3, 4, 4), -2.0), ImagePreprocessing(), r"values of -2 to -2, which would be pixels of -510 to"),
        (np.full((1, 3, 4, 4), 200.0), ImagePreprocessing(), r"which would be pixels of .* to 5\.1e\+04"),
        (np.zeros((1, 4, 4, 3)), ImagePreprocessing(), "has the shape"),
        (np.zeros((1, 3, 4, 4)), ImagePreprocessing(height=5, width=4), "has images of 4x4"),
        (np.zeros((1, 3, 4, 4)), ImagePreprocessing(dtype="uint8"), "is float32, but its preprocessing says"),
        (np.full((1, 800), 3.0), SoundPreprocessing(sample_rate=8000), "has values up to 3"),
        (np.zeros((1, 800)), SoundPreprocessing(sample_rate=8000, samples=900), "has 800 samples"),
        (np.zeros((1, 40, 100)), SoundPreprocessing(sample_rate=8000), "has the shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_preprocessing_that_cannot_give_the_inputs_is_found_out(values, how, reason):
    with pytest.raises(DataError, match=reason):
        make_raw("x", values.astype(np.float32), how)


def test_a_sound_is_a_wav_of_the_samples():
    times = np.arange(800) / 8000
    batch = (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32).reshape(1, 1, -1)
    raw = make_raw("x", batch, SoundPreprocessing(sample_rate=8000, samples=800))
    with wave.open(io.BytesIO(raw.files[0])) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        samples = np.frombuffer(file.readframes(800), "<i2")
    np.testing.assert_allclose(samples / 2**15, raw.values[0, 0], atol=1e-7)
    np.testing.assert_allclose(raw.values, batch, atol=1 / 2**15)


@pytest.mark.parametrize(("rule", "ratio"), [("stretch", 1.0), ("pad", 1.0), ("crop", 1.0), ("crop", 0.8)])
@pytest.mark.parametrize("size", [(41, 57), (13, 90), (12, 11)])
def test_resizing_is_that_of_the_folder_of_images(tmp_path, rule, ratio, size):
    path = tmp_path / "image.png"
    picture = photo(*size)
    Image.fromarray(picture).save(path)
    expected = read_image(path, 3, ImageFit(20, 24, rule, ratio))
    found = fit_image(picture, ImagePreprocessing(height=20, width=24, resize=rule, crop_ratio=ratio))
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("rule", ["stretch", "crop", "pad"])
def test_an_image_of_another_size_tells_the_rules_apart_and_allows_another_interpolation(rule):
    how = ImagePreprocessing(height=20, width=24, resize=rule, **IMAGENET)
    flat = np.full((20, 24, 3), 90, np.uint8)
    resized = make_resized([flat, photo()], how)
    picture = decoded(resized.file, 3)
    assert picture.shape[:2] == (26, 43)

    def error(values):
        return np.abs(values - resized.values).mean()

    assert error(input_of_pixels(picture, how)) == 0
    for other in {"stretch", "crop", "pad"} - {rule}:
        wrong = input_of_pixels(picture, ImagePreprocessing(height=20, width=24, resize=other, **IMAGENET))
        assert error(wrong) > 1.5 * resized.tolerance
    if rule == "stretch":
        nearest_four = resize_image(picture, 20, 24, antialias=False)
        assert error(input_of_pixels(nearest_four, how)) <= resized.tolerance
    assert make_resized([photo()], ImagePreprocessing()) is None


@pytest.mark.parametrize("rule", ["stretch", "crop", "pad"])
def test_the_rules_are_told_apart_for_networks_that_take_bytes(rule):
    how = ImagePreprocessing(height=20, width=24, resize=rule, dtype="uint8")
    resized = make_resized([photo()], how)
    picture = decoded(resized.file, 3)
    for other in {"stretch", "crop", "pad"} - {rule}:
        wrong = input_of_pixels(picture, ImagePreprocessing(height=20, width=24, resize=other, dtype="uint8"))
        assert np.abs(wrong.astype(float) - resized.values).mean() > 1.5 * resized.tolerance


def test_inputs_between_two_pixels_are_noticed():
    right = ImagePreprocessing(height=20, width=24)
    batch = input_of_pixels(photo(), right)
    assert not make_raw("x", batch, right).is_rounded
    assert make_raw("x", batch, ImagePreprocessing(height=20, width=24, mean=(0.5,), std=(0.5,))).is_rounded


def test_numbers_of_numpy_become_plain_ones():
    how = ImagePreprocessing(height=np.int64(20), width=24, mean=np.array([0.5, 0.25, 0.125]), std=0.5)
    assert msgspec.json.decode(msgspec.json.encode(how), type=ImagePreprocessing) == how
    assert (how.mean, how.std) == ((0.5, 0.25, 0.125), (0.5,))


def test_pixels_are_returned_in_red_green_and_blue():
    picture = photo()
    how = WAYS["bgr bytes"]
    np.testing.assert_array_equal(pixels_of("x", input_of_pixels(picture, how), how)[0], picture)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mean": (0.5, 0.5)}, "mean has 2 numbers"),
        ({"color": "gray", "std": (1.0, 1.0, 1.0)}, "std has 3 numbers"),
        ({"std": (0.0,)}, "std is 0.0; it has to be above 0"),
        ({"height": 3}, "both height and width"),
        ({"crop_ratio": 1.5, "resize": "crop"}, "at most 1"),
        ({"crop_ratio": 0.875}, "goes with resize='crop'"),
        ({"color": "RGB"}, "color is 'RGB'; it has to be one of rgb, bgr, gray"),
        ({"resize": "center"}, "it has to be one of crop, stretch, pad"),
        ({"dtype": "uint8", "mean": (0.5,)}, "leave mean and std out"),
        ({"mean": "imagenet"}, "it has to be a number, or one for each channel"),
        ({"height": 1.5, "width": 2}, "height is 1.5; it has to be a whole number"),
    ],
)
def test_a_preprocessing_that_makes_no_sense_is_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        ImagePreprocessing(**fields)
