"""One policy for pictures, through every door: a table of doors and kinds, each answered by the same written rule."""

import contextlib
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from edgekiln.pipeline.data import Sample
from edgekiln.pipeline.data.prepared import _look_at_all
from edgekiln.runtime import Batcher, ImageError, load
from edgekiln.runtime.backends.onnxruntime import OnnxRuntimeSession
from edgekiln.runtime.pictures.fast_decode import prepare_fast
from edgekiln.runtime.pictures.image import prepare
from edgekiln.runtime.serving import selecting

SIDE = 32  # of the tiny run's contract: a picture of this size is not resized
RED, BLUE = (200, 30, 20), (20, 40, 210)


# -- kinds: each gives the bytes of a file, and the array that every door must make of it or the reason of its refusal


def halves(mode="RGB", top=RED, bottom=BLUE):
    image = Image.new(mode, (SIDE, SIDE), top)
    image.paste(bottom, (0, SIDE // 2, SIDE, SIDE))
    return image


def array_of(top, bottom):
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[: SIDE // 2], pixels[SIDE // 2 :] = top, bottom
    return pixels


def file_of(image, format_="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def turned(orientation, format_="PNG", **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file_of(halves(), format_, exif=exif, **options)


def jpeg_array(data):
    """What the decoder makes of a JPEG's bytes, before it is turned."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def palette(**options):
    image = Image.new("P", (SIDE, SIDE), 0)
    image.paste(1, (0, SIDE // 2, SIDE, SIDE))
    image.putpalette([*RED, *BLUE])
    return file_of(image, **options)


def sixteen_bits():
    values = np.full((SIDE, SIDE), 60_000, np.uint16)
    values[SIDE // 2 :] = 300
    return file_of(Image.fromarray(values))


def animation(format_):
    options = {"lossless": True} if format_ == "WEBP" else {}
    other = Image.new("RGB", (SIDE, SIDE), (1, 2, 3))
    return file_of(halves(), format_, save_all=True, append_images=[other], duration=50, **options)


PLAIN = array_of(RED, BLUE)
WHITE = (255, 255, 255)  # the contract's background
JPEG = file_of(halves(), "JPEG", quality=95)
CMYK = file_of(halves("CMYK", (0, 255, 255, 0), (255, 255, 0, 0)), "JPEG", quality=95)
NOISE = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
TURNED_JPEG = turned(6, "JPEG", quality=95)

ANSWERED = {
    "JPEG": (JPEG, jpeg_array(JPEG)),
    "PNG": (file_of(halves()), PLAIN),
    "WebP": (file_of(halves(), "WEBP", lossless=True), PLAIN),
    "BMP": (file_of(halves(), "BMP"), PLAIN),
    "EXIF 3, PNG": (turned(3), PLAIN[::-1]),
    "EXIF 6, JPEG": (TURNED_JPEG, np.rot90(jpeg_array(TURNED_JPEG), -1)),
    "EXIF 8, WebP": (turned(8, "WEBP", lossless=True), np.rot90(PLAIN)),
    "CMYK": (CMYK, jpeg_array(CMYK)),
    "grey": (file_of(halves("L", 40, 200)), array_of(40, 200)),
    "one bit": (file_of(halves("1", 1, 0)), array_of(255, 0)),
    "alpha": (file_of(halves("RGBA", (*RED, 255), (*BLUE, 0))), array_of(RED, WHITE)),
    "grey with alpha": (file_of(halves("LA", (40, 255), (200, 0))), array_of(40, WHITE)),
    "palette": (palette(), PLAIN),
    "palette with transparency": (palette(transparency=1), array_of(RED, WHITE)),
    "16 bits": (sixteen_bits(), array_of(233, 1)),  # 60000 / 257 = 233.5 down, since 233 * 257 + 128 > 60000
    "animated WebP": (animation("WEBP"), PLAIN),
    "animated PNG": (animation("PNG"), PLAIN),
}
REFUSED = {
    "truncated JPEG": (file_of(Image.fromarray(NOISE), "JPEG")[:-300], "truncated"),
    "truncated PNG": (file_of(Image.fromarray(NOISE))[:1500], "truncated"),
    "damaged PNG": (file_of(Image.fromarray(NOISE)).replace(b"IDATx", b"IDATy"), "corrupt"),
    "GIF": (file_of(halves(), "GIF"), "format"),
    "TIFF": (file_of(halves(), "TIFF"), "format"),
    "float TIFF": (file_of(Image.new("F", (SIDE, SIDE), 0.5), "TIFF"), "format"),
    "text": (b"no picture at all, but long enough for a header", "format"),
    "nothing": (b"", "format"),
    "too many pixels": (file_of(Image.new("1", (8000, 6251))), "too_large"),
    "too many scans": (
        file_of(halves(), "JPEG", progressive=True)[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x3f\x00\x00" * 60,
        "too_large",
    ),
}
FILES = {kind: data for kind, (data, _) in (ANSWERED | REFUSED).items()}


# -- doors: each gives the array that reached the engine, or the error that came instead


class Reached(list):
    """Frames that engines were given, one for each picture."""

    def take(self):
        [frame] = self
        self.clear()
        return frame


@pytest.fixture(scope="module")
def served(tiny_run):
    """The tiny run's bundle, loaded, whose engine writes down what it is given."""
    reached, call = Reached(), OnnxRuntimeSession.run

    def record(self, frames):
        reached.extend(np.array(frames))
        return call(self, frames)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnnxRuntimeSession, "run", record)
        patch.setattr(selecting, "ask_canaries", lambda *_, **__: None)  # they would be written down, too
        with load(tiny_run[2].bundle, threads=1) as classifier:
            yield tiny_run[2].bundle, classifier, reached


@pytest.fixture
def enter(served, all_by_command, tmp_path):
    """``enter(door, kind)`` is the frame or the ImageError that the kind's bytes become there."""
    bundle, classifier, reached = served

    def enter(door, kind):
        if door in COMMANDS:
            return all_by_command[door][kind]
        data = FILES[kind]
        reached.clear()
        if door == "command, stdin":
            [outcome] = run_command(bundle, reached, "-", stdin=data)
            return outcome
        path = tmp_path / "picture.png"  # the ending says nothing about the content
        path.write_bytes(data)
        try:
            answer = DOORS[door](classifier, path, data)
        except ImageError as error:
            return error
        return answer if isinstance(answer, np.ndarray | ImageError) else reached.take()

    return enter


def run_command(bundle, reached, *arguments, stdin=b""):
    """``edgekiln predict``: the frame or error of each picture, in order."""
    from edgekiln.pipeline.cli import main

    reached.clear()
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(bundle), *map(str, arguments), "--format", "jsonl", "--threads", "1"])
    answers = [json.loads(line) for line in output.getvalue().splitlines() if line.startswith("{")]
    assert ended.value.code == (2 if any("error" in answer for answer in answers) else 0)
    errors = [answer.get("error") for answer in answers]
    frames = iter(reached)
    return [ImageError(e["message"], reason=e["reason"]) if e else next(frames) for e in errors]


@pytest.fixture(scope="module")
def all_by_command(served, tmp_path_factory):
    """For each command that takes many files, what all kinds became in one call."""
    bundle, _, reached = served
    folder = tmp_path_factory.mktemp("kinds")
    paths = [folder / f"{i:02}.png" for i in range(len(FILES))]
    for path, data in zip(paths, FILES.values(), strict=True):
        path.write_bytes(data)
    listed = folder / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in paths))
    arguments = {
        "path": paths,
        "folder": [folder],
        "glob": [folder / "*.png"],
        "list": ["--from-file", listed],
    }
    return {
        f"command, {name}": dict(zip(FILES, run_command(bundle, reached, *given), strict=True))
        for name, given in arguments.items()
    }


def by_batcher(classifier, path, data):
    with Batcher(classifier, max_batch=2) as batcher:
        return batcher.submit(data).result(timeout=30)


def by_data_set(classifier, path, data):
    contract = classifier.contract
    [looked] = _look_at_all(
        [Sample("a/picture.png", 0, path)], lambda picture: prepare(picture, contract), contract
    )
    return looked.failure or looked.frame


DOORS = {
    "path": lambda classifier, path, data: classifier.predict(path),
    "text path": lambda classifier, path, data: classifier.predict(str(path)),
    "bytes": lambda classifier, path, data: classifier.predict(data),
    "bytearray": lambda classifier, path, data: classifier.predict(bytearray(data)),
    "memoryview": lambda classifier, path, data: classifier.predict(memoryview(data)),
    "batch": lambda classifier, path, data: classifier.predict_batch([data])[0],
    "stream": lambda classifier, path, data: next(classifier.predict_stream([data])),
    "batcher": by_batcher,
    "prepare": lambda classifier, path, data: prepare(data, classifier.contract),
    "fast": lambda classifier, path, data: prepare_fast(data, classifier.contract),
    "data set": by_data_set,
}
COMMANDS = ("command, path", "command, folder", "command, glob", "command, list")
ALL_DOORS = [*DOORS, *COMMANDS, "command, stdin"]


@pytest.mark.parametrize("kind", ANSWERED)
@pytest.mark.parametrize("door", ALL_DOORS)
def test_every_door_makes_the_same_array(enter, door, kind):
    np.testing.assert_array_equal(enter(door, kind), ANSWERED[kind][1])


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("door", ALL_DOORS)
def test_every_door_refuses_with_the_same_reason(enter, door, kind):
    error = enter(door, kind)
    assert isinstance(error, ImageError), error
    assert error.reason == REFUSED[kind][1]


# -- PIL images: the caller has opened them, so that their format is the caller's choice


@pytest.mark.parametrize("kind", ANSWERED)
def test_a_pil_image_is_taken_by_the_same_rules(served, kind):
    data, wanted = ANSWERED[kind]
    _, classifier, reached = served
    reached.clear()
    classifier.predict(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(reached.take(), wanted)


@pytest.mark.parametrize("kind", ["truncated JPEG", "truncated PNG", "too many pixels"])
def test_a_pil_image_that_cannot_be_decoded_is_refused_by_the_same_reason(served, kind):
    data, reason = REFUSED[kind]
    with pytest.raises(ImageError) as caught:
        served[1].predict(Image.open(io.BytesIO(data)))
    assert caught.value.reason == reason


def test_a_float_pil_image_is_refused(served):
    with pytest.raises(ImageError, match="floating-point") as caught:
        served[1].predict(Image.new("F", (SIDE, SIDE), 0.5))
    assert caught.value.reason == "mode"


# -- what is no picture at all


class Bytes(os.PathLike):
    def __fspath__(self):
        return b"picture.png"


@pytest.mark.parametrize(
    "picture", [None, 3, 1.5, [1], {"a": 1}, object(), Bytes(), np.float32(3)], ids=lambda p: type(p).__name__
)
def test_anything_else_is_an_image_error_of_the_type(served, picture):
    with pytest.raises(ImageError) as caught:
        served[1].predict(picture)
    assert caught.value.reason == "type"


def test_memory_that_runs_out_is_an_image_error(served, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", fail)
    with pytest.raises(ImageError, match="memory ran out") as caught:
        served[1].predict(JPEG)
    assert caught.value.reason == "memory"
