"""Scaled decoding: how far from the plain path it may be, what it leaves alone, and that it is off until proven."""

import io
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from serving_support import GatedSession

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import GateError, ImageError, UsageError
from edgekiln.runtime.pictures import fast_decode
from edgekiln.runtime.pictures.fast_decode import MAX_BOUND, MEAN_BOUND, prepare_fast, prepare_scaled
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.serving.agreement import establish_agreement
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.prediction import Selection

SELECTION = Selection("fp32", "fake", "fp32", "made by hand")
SQUASH = Contract(height=64, width=48, classes=("a", "b", "c"))
CROP = replace(SQUASH, resize="shorter-side", shorter_side=72)
WIDTH, HEIGHT = 960, 540


def noise(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def edges():
    """Black and white stripes, 7 pixels wide: no multiple of the decoder's blocks."""
    stripes = np.indices((HEIGHT, WIDTH)).sum(0) // 7 % 2 * 255
    return np.repeat(stripes.astype(np.uint8)[..., None], 3, axis=2)


@cache
def scene():
    """Blobs of many sizes, the larger the stronger, as in photographs."""
    generator, total = np.random.default_rng(1), np.zeros((HEIGHT, WIDTH, 3))
    for octave in range(8):
        shape = (max(2, HEIGHT >> octave), max(2, WIDTH >> octave), 3)
        coarse = Image.fromarray(generator.integers(0, 256, shape, np.uint8))
        total += 2.0**octave * np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    return (total / 255).astype(np.uint8)


def jpeg(pixels, **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


@pytest.mark.parametrize("contract", [SQUASH, CROP], ids=["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("make", [noise, edges, scene])
def test_the_stated_bound_holds(make, interpolation, contract):
    contract = replace(contract, interpolation=interpolation)
    data = jpeg(make())
    fast, plain = prepare_scaled(data, contract), prepare(data, contract)
    assert fast is not None
    assert (fast.shape, fast.dtype) == (plain.shape, plain.dtype)
    difference = np.abs(fast.astype(int) - plain)
    assert 0 < difference.mean() <= MEAN_BOUND
    assert difference.max() <= MAX_BOUND


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("contract", [SQUASH, CROP], ids=["squash", "crop"])
def test_orientation_is_honoured(contract, orientation):
    data = jpeg(scene(), **turned(orientation))
    fast, plain = prepare_scaled(data, contract), prepare(data, contract)
    assert np.abs(fast.astype(int) - plain).mean() <= MEAN_BOUND


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_within_the_bound(mode):
    data = jpeg(Image.fromarray(scene()).convert(mode))
    fast = prepare_scaled(data, SQUASH)
    assert np.abs(fast.astype(int) - prepare(data, SQUASH)).mean() <= MEAN_BOUND


def small():
    return jpeg(noise()[:100, :90])


def png():
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("picture", "contract"),
    [
        (jpeg(scene()), replace(SQUASH, interpolation="nearest")),
        (small(), SQUASH),  # under twice 64 pixels along the shorter side
        (png(), SQUASH),
        (noise(), SQUASH),
        (Image.fromarray(noise()), SQUASH),
        (jpeg(noise()[:401, :546]), CROP),  # 98 pixels wide before the crop, 97 by way of 273 x 201
    ],
    ids=["nearest", "small", "png", "array", "pil", "rounding"],
)
def test_the_plain_path_is_taken_for_all_else(picture, contract):
    assert prepare_scaled(picture, contract) is None
    np.testing.assert_array_equal(prepare_fast(picture, contract), prepare(picture, contract))


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"", "format"),
        (jpeg(scene())[:5000], "truncated"),
        (b"\xff\xd8 no more", "format"),
        ("/no/such.jpg", "missing"),
        ("/", "unreadable"),
        ("nul\0", "unreadable"),
        (12, "type"),
    ],
)
def test_errors_are_those_of_the_plain_path(picture, reason):
    with pytest.raises(ImageError) as plain:
        prepare(picture, SQUASH)
    with pytest.raises(ImageError) as fast:
        prepare_fast(picture, SQUASH)
    assert (fast.value.message, fast.value.reason, fast.value.path) == (
        plain.value.message, plain.value.reason, plain.value.path,
    )  # fmt: skip
    assert fast.value.reason == reason


def test_a_path_and_its_bytes_give_the_same(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(scene()))
    wanted = prepare_fast(path.read_bytes(), SQUASH)
    np.testing.assert_array_equal(prepare_fast(path, SQUASH), wanted)
    np.testing.assert_array_equal(prepare_fast(str(path), SQUASH), wanted)


def test_a_picture_over_the_pixel_limit_is_refused_by_its_real_size(monkeypatch):
    data = jpeg(scene())
    monkeypatch.setattr("edgekiln.runtime.pictures.limits.MAX_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(ImageError, match="960 x 540 pixels, the limit is") as caught:
        prepare_fast(data, SQUASH)
    assert caught.value.reason == "too_large"


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}], ids=str)
@pytest.mark.parametrize("contract", [SQUASH, CROP], ids=["squash", "crop"])
def test_simplejpeg_gives_the_same_bits(contract, options, orientation, monkeypatch):
    pytest.importorskip("simplejpeg", reason="the extra simplejpeg is not installed")
    data = jpeg(scene(), **options, **turned(orientation))
    calls = []
    library = fast_decode._find_simplejpeg()

    def count(*arguments, **keywords):
        calls.append(keywords)
        return library.decode_jpeg(*arguments, **keywords)

    monkeypatch.setattr(fast_decode, "_find_simplejpeg", lambda: SimpleNamespace(decode_jpeg=count))
    by_simplejpeg = prepare_scaled(data, contract)
    assert len(calls) == 1
    monkeypatch.setattr(fast_decode, "_find_simplejpeg", lambda: None)
    np.testing.assert_array_equal(by_simplejpeg, prepare_scaled(data, contract))


def test_another_fraction_of_simplejpeg_is_not_taken(monkeypatch):
    monkeypatch.setattr(fast_decode, "_find_simplejpeg", lambda: None)
    data = jpeg(scene())
    wanted = prepare_scaled(data, SQUASH)
    other = SimpleNamespace(decode_jpeg=lambda *_, **__: np.zeros((7, 7, 3), np.uint8))
    monkeypatch.setattr(fast_decode, "_find_simplejpeg", lambda: other)
    np.testing.assert_array_equal(prepare_scaled(data, SQUASH), wanted)


# -- what turns it on


@pytest.fixture
def classifier():
    with Classifier(GatedSession(frame_shape=(64, 48)), SQUASH, SELECTION) as classifier:
        yield classifier


def tinted(channel):
    pixels = scene() // 2
    pixels[..., channel] += 100
    return jpeg(pixels)


def test_it_is_off_by_default_and_on_after_agreement(classifier):
    data = tinted(0)
    plain, fast = prepare(data, SQUASH), prepare_fast(data, SQUASH)
    assert not np.array_equal(plain, fast)
    mean = np.asarray(plain, np.float64).mean(axis=(0, 1)).astype(np.float32)
    np.testing.assert_array_equal(classifier.predict(data).logits, mean)
    evidence = establish_agreement(classifier, [tinted(i) for i in range(3)] + [png()], minimum=3)
    assert (evidence.pictures, evidence.scaled) == (4, 3)
    assert 0 < evidence.mean_difference <= MEAN_BOUND
    mean = np.asarray(fast, np.float64).mean(axis=(0, 1)).astype(np.float32)
    np.testing.assert_array_equal(classifier.predict(data).logits, mean)
    [answer] = classifier.predict_stream([data])
    np.testing.assert_array_equal(answer.logits, mean)


def test_a_picture_of_another_class_keeps_it_off(classifier, monkeypatch):
    # A session that tells the two paths apart stands for a picture on the border between two classes.
    data = tinted(0)
    plain = prepare(data, SQUASH)

    def run(frames):
        same = np.array([np.array_equal(frame, plain) for frame in frames])
        return np.stack([same, ~same, np.zeros_like(same)], axis=1).astype(np.float32)

    monkeypatch.setattr(classifier.session, "run", run)
    with pytest.raises(GateError, match=r"gives 1 of 2 pictures another class; the first is number 1\."):
        establish_agreement(classifier, [png(), data, tinted(2)], minimum=1)
    assert not classifier._model.fast_decode


def test_too_few_pictures_are_no_evidence(classifier):
    with pytest.raises(
        UsageError, match=r"3 of 4 pictures are JPEGs large enough to be scaled; 100 are wanted"
    ):
        establish_agreement(classifier, [*(tinted(i) for i in range(3)), png()])
    with pytest.raises(UsageError, match=r"0 of 0 pictures .*; 1 are wanted"):
        establish_agreement(classifier, [], minimum=0)
    with pytest.raises(ImageError):
        establish_agreement(classifier, [tinted(0), b""], minimum=1)
    assert not classifier._model.fast_decode


def test_it_is_off_again_after_a_reload_which_says_so(classifier, caplog):
    establish_agreement(classifier, [tinted(0)], minimum=1)
    classifier.adopt(Classifier(GatedSession(frame_shape=(64, 48)), SQUASH, SELECTION))
    assert not classifier._model.fast_decode
    assert "fast decoding is off" in caplog.text
