"""``prepare``: equal to torchvision bit for bit, and one written policy for every odd picture."""

import io
import itertools
import logging
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, v2

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ExitCode, ImageError
from edgekiln.runtime.pictures.image import MAX_BYTES, check_encoded, decode, prepare
from edgekiln.runtime.pictures.limits import MAX_PIXELS

CLASSES = ("a", "b")
SMALL = Contract(height=6, width=9, classes=CLASSES)
CROP = Contract(height=6, width=9, resize="shorter-side", shorter_side=12, classes=CLASSES)


def noise(width, height, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width * 1000 + height).integers(0, 256, shape, np.uint8)


def as_is(width, height, **changes):
    """A contract that changes nothing about a picture of this size."""
    return Contract(height=height, width=width, interpolation="nearest", classes=CLASSES, **changes)


def encoded(image, format_="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that promises a size and has no pixel: whoever decodes it fails otherwise than by its size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def refused(picture, reason, message, contract=SMALL, **options):
    with pytest.raises(ImageError, match=message) as caught:
        prepare(picture, contract, **options)
    assert caught.value.reason == reason
    assert caught.value.exit_code == ExitCode.USAGE
    return caught.value


# Size, resize, crop


@pytest.mark.parametrize("color_order", ["rgb", "bgr"])
@pytest.mark.parametrize(
    "contract",
    [
        Contract(height=6, width=9, classes=CLASSES),
        Contract(height=6, width=6, resize="shorter-side", shorter_side=6, classes=CLASSES),
    ],
)
def test_an_array_of_the_final_size_is_copied_as_pillow_would(contract, color_order):
    wide = noise(2 * contract.width, contract.height)
    frame = wide[:, ::2]  # not contiguous
    prepared = prepare(frame, contract, color_order=color_order)
    through_pillow = prepare(
        Image.fromarray(np.ascontiguousarray(frame if color_order == "rgb" else frame[..., ::-1])), contract
    )
    assert np.array_equal(prepared, through_pillow)
    assert prepared.flags.c_contiguous
    assert prepared.flags.writeable
    assert not np.shares_memory(prepared, wide)
    whole = np.ascontiguousarray(frame)
    assert not np.shares_memory(prepare(whole, contract, color_order=color_order), whole)


def test_an_array_as_large_as_the_frame_is_still_cropped_where_the_rule_enlarges_first():
    frame = noise(6, 6)
    contract = Contract(height=6, width=6, resize="shorter-side", shorter_side=12, classes=CLASSES)
    assert np.array_equal(prepare(frame, contract), prepare(Image.fromarray(frame), contract))
    assert not np.array_equal(prepare(frame, contract), frame)


class _Strange(np.ndarray):
    @property
    def shape(self):
        raise KeyError("shape")


def test_what_cannot_even_be_looked_at_is_an_image_error():
    released = memoryview(b"GIF89a")
    released.release()
    refused(released, "corrupt", "released memoryview")
    refused(np.zeros((6, 9, 3), np.uint8).view(_Strange), "corrupt", "shape")


def test_an_array_of_the_final_size_is_checked_like_any_other():
    refused(np.zeros((6, 9, 3), np.float32), "type", "must be uint8")
    refused(np.zeros((6, 9, 3), np.uint8), "type", "color order", color_order="hsv")


FILTERS = ["nearest", "bilinear", "bicubic", "lanczos"]
SIZES = [(37, 53), (53, 37), (41, 41), (32, 32), (5, 7), (1, 9), (9, 1), (301, 200), (199, 302), (640, 33)]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_squash_equals_torchvision_bit_for_bit(size, interpolation):
    picture = Image.fromarray(noise(*size))
    for height, width in [(32, 32), (17, 29), (61, 40), (200, 301)]:
        contract = Contract(height=height, width=width, interpolation=interpolation, classes=CLASSES)
        reference = v2.Resize((height, width), InterpolationMode(interpolation), antialias=True)
        np.testing.assert_array_equal(prepare(picture, contract), np.asarray(reference(picture)))


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_shorter_side_equals_torchvision_bit_for_bit(size, interpolation):
    picture = Image.fromarray(noise(*size))
    for shorter_side, height, width in [(40, 32, 32), (32, 32, 31), (33, 20, 33), (37, 24, 31), (75, 64, 64)]:
        contract = Contract(
            height=height,
            width=width,
            resize="shorter-side",
            shorter_side=shorter_side,
            interpolation=interpolation,
            classes=CLASSES,
        )
        resize = v2.Resize(shorter_side, InterpolationMode(interpolation), antialias=True)
        reference = v2.Compose([resize, v2.CenterCrop((height, width))])
        np.testing.assert_array_equal(prepare(picture, contract), np.asarray(reference(picture)))


def test_a_picture_of_the_right_size_is_not_changed():
    pixels = noise(9, 6)
    np.testing.assert_array_equal(prepare(pixels, SMALL), pixels)


@pytest.mark.parametrize("contract", [SMALL, CROP], ids=["squash", "shorter-side"])
def test_every_door_gives_the_same_array(tmp_path, contract):
    pixels = noise(23, 31)
    data = encoded(Image.fromarray(pixels))
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    doors = [path, str(path), data, bytearray(data), memoryview(data), Image.open(path), pixels]
    for picture in doors:
        result = prepare(picture, contract)
        assert result.dtype == np.uint8
        assert result.shape == (6, 9, 3)
        assert result.flags.c_contiguous
        assert result.flags.writeable
        np.testing.assert_array_equal(result, prepare(pixels, contract))


# Orientation


def oriented(format_, orientation, image):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}}[format_]
    return encoded(image, format_, exif=exif, **options)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_through_every_door(tmp_path, format_, orientation):
    data = oriented(format_, orientation, Image.fromarray(noise(24, 16)))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert upright.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    path = tmp_path / "picture"
    path.write_bytes(data)
    contract = as_is(upright.shape[1], upright.shape[0])
    for picture in (path, data, Image.open(path)):
        np.testing.assert_array_equal(prepare(picture, contract), upright)


def test_the_eight_orientations_differ():
    picture = Image.fromarray(noise(16, 16))
    results = {prepare(oriented("PNG", i, picture), as_is(16, 16)).tobytes() for i in range(1, 9)}
    assert len(results) == 8


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation):
    pixels = noise(9, 6)
    data = oriented("PNG", orientation, Image.fromarray(pixels))
    np.testing.assert_array_equal(prepare(data, SMALL), pixels)


def test_unreadable_exif_turns_nothing_and_is_logged(caplog):
    pixels = noise(9, 6)
    data = encoded(Image.fromarray(pixels), exif=b"Exif\x00\x00 this is no TIFF header")
    with caplog.at_level(logging.WARNING, "edgekiln.runtime"):
        np.testing.assert_array_equal(prepare(data, SMALL), pixels)
    assert "unreadable EXIF ignored" in caplog.text


def test_a_turned_16_bit_picture_is_scaled_and_turned():
    values = (np.arange(54, dtype=np.uint16) * 1200).reshape(6, 9)
    data = oriented("PNG", 6, Image.fromarray(values))
    expected = np.rot90(np.rint(values / 257), -1).astype(np.uint8)
    np.testing.assert_array_equal(prepare(data, as_is(6, 9)), np.repeat(expected[..., None], 3, axis=2))


def test_a_turned_palette_picture_keeps_its_transparency():
    indices = np.zeros((2, 3), np.uint8)
    indices[0, 0] = 1
    image = Image.frombytes("P", (3, 2), indices.tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60])
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(image, transparency=1, exif=exif)
    expected = np.full((2, 3, 3), (10, 20, 30), np.uint8)
    expected[1, 2] = (7, 8, 9)
    np.testing.assert_array_equal(prepare(data, as_is(3, 2, background=(7, 8, 9))), expected)


# Modes


def test_grey_is_repeated_over_the_channels():
    grey = noise(9, 6, 1)
    for picture in (
        Image.fromarray(grey),
        encoded(Image.fromarray(grey)),
        encoded(Image.fromarray(grey), "BMP"),
    ):
        np.testing.assert_array_equal(prepare(picture, SMALL), np.repeat(grey[..., None], 3, axis=2))


def test_one_bit_becomes_black_and_white():
    bits = np.arange(54).reshape(6, 9) % 3 == 0
    data = encoded(Image.fromarray(bits))
    assert Image.open(io.BytesIO(data)).mode == "1"
    np.testing.assert_array_equal(prepare(data, SMALL), np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))


@pytest.mark.parametrize(
    ("ink", "color"),
    [
        ((0, 0, 0, 0), 255),
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 255, 0, 0), (0, 0, 255)),
        ((9, 9, 9, 255), 0),
    ],
)
def test_cmyk_inks_become_their_colors(ink, color):
    image = Image.new("CMYK", (9, 6), ink)
    expected = np.broadcast_to(np.array(color, np.uint8), (6, 9, 3))
    np.testing.assert_array_equal(prepare(image, SMALL), expected)
    # JPEG may move a flat ink by one step per plane, and a colour is the product of two planes.
    stored = prepare(encoded(image, "JPEG", quality=100), SMALL)
    np.testing.assert_allclose(stored.astype(int), expected.astype(int), atol=2)


def palette_picture():
    indices = np.arange(54, dtype=np.uint8).reshape(6, 9) % 4
    colors = np.array([[10, 20, 30], [250, 0, 0], [0, 250, 0], [1, 2, 3]], np.uint8)
    image = Image.frombytes("P", (9, 6), indices.tobytes())
    image.putpalette(colors.tobytes())
    return image, indices, colors


def test_palette_indices_become_their_colors():
    image, indices, colors = palette_picture()
    for picture in (image, encoded(image)):
        np.testing.assert_array_equal(prepare(picture, SMALL), colors[indices])


def test_transparent_palette_entries_show_the_background():
    image, indices, colors = palette_picture()
    data = encoded(image, transparency=2)
    assert Image.open(io.BytesIO(data)).mode == "P"
    colors[2] = (70, 80, 90)
    contract = as_is(9, 6, background=(70, 80, 90))
    opened = Image.open(io.BytesIO(data))
    for picture in (data, opened, opened):  # once it is loaded, nothing of Pillow's tells its depth any more
        np.testing.assert_array_equal(prepare(picture, contract), colors[indices])


@pytest.mark.parametrize(("mode", "key"), [("RGB", (5, 6, 7)), ("L", 5)])
def test_a_transparent_color_shows_the_background(mode, key):
    image = Image.new(mode, (9, 6), key)
    image.putpixel((2, 3), (200, 6, 7) if mode == "RGB" else 200)
    expected = np.full((6, 9, 3), (70, 80, 90), np.uint8)
    expected[3, 2] = (200, 6, 7) if mode == "RGB" else 200
    data = encoded(image, transparency=key)
    np.testing.assert_array_equal(prepare(data, as_is(9, 6, background=(70, 80, 90))), expected)


@pytest.mark.parametrize(
    ("depth", "kind", "row", "key", "visible"),
    [
        (1, 0, bytes([0b01000000]), (1,), (0, 0, 0)),
        (2, 0, bytes([0b01100000]), (2,), (85, 85, 85)),
        (4, 0, bytes([0x5A]), (10,), (85, 85, 85)),
        (4, 0, bytes([0x5A]), (0x130 + 10,), (85, 85, 85)),  # only the lowest bits count
        (8, 0, bytes([5, 10]), (10,), (5, 5, 5)),
        (16, 0, struct.pack(">2H", 257, 40_000), (40_000,), (1, 1, 1)),
        (8, 2, bytes([1, 2, 3, 4, 5, 6]), (4, 5, 6), (1, 2, 3)),
        (16, 2, struct.pack(">6H", 256, 512, 768, 4000, 5000, 6000), (4000, 5000, 6000), (1, 2, 3)),
    ],
    ids=["grey1", "grey2", "grey4", "grey4-high", "grey8", "grey16", "rgb8", "rgb16"],
)
def test_a_png_of_any_depth_shows_the_background_through_its_transparent_color(
    depth, kind, row, key, visible
):
    data = png_of_two_pixels(depth, kind, row, key)
    opened = Image.open(io.BytesIO(data))
    for picture in (data, opened, opened):  # once it is loaded, nothing of Pillow's tells its depth any more
        upright = decode(picture, background=(200, 100, 50))
        assert [upright.getpixel((x, 0)) for x in range(2)] == [visible, (200, 100, 50)]


def png_of_two_pixels(depth, kind, row, key):
    header = struct.pack(">IIBBBBB", 2, 1, depth, kind, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"tRNS", struct.pack(f">{len(key)}H", *key)),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def test_alpha_is_laid_upon_the_background_of_the_contract():
    colors = noise(16, 16)
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    background = np.array((10, 200, 30))
    picture = Image.fromarray(np.dstack([colors, alpha]))
    weight = alpha[..., None] / 255
    expected = weight * colors + (1 - weight) * background
    for source in (picture, encoded(picture), encoded(picture, "WEBP", lossless=True, exact=True)):
        result = prepare(source, as_is(16, 16, background=(10, 200, 30)))
        # Pillow composites in integers with 7 extra bits: under one step from the real number.
        np.testing.assert_allclose(result, expected, atol=1)
        np.testing.assert_array_equal(result[0, 0], background)
        np.testing.assert_array_equal(result[15, 15], colors[15, 15])


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
def test_other_alpha_modes_show_the_background_too(mode):
    # Opaque, then clear: premultiplied modes hold the same numbers for these two.
    image = Image.new("LA", (9, 6), (40, 255))
    image.paste((0, 0), (0, 0, 4, 6))
    # Pillow drops the alpha on its way from LA to PA, and has no way from LA to RGBa.
    source = (image if mode in {"LA", "La"} else image.convert("RGBA")).convert(mode)
    assert source.mode == mode
    expected = np.full((6, 9, 3), 40, np.uint8)
    expected[:, :4] = (70, 80, 90)
    np.testing.assert_array_equal(prepare(source, as_is(9, 6, background=(70, 80, 90))), expected)


def test_16_bit_grey_is_scaled_not_clipped_for_every_value():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)  # 257 is odd: no ties
    data = encoded(Image.fromarray(values))
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    wide = Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    for picture in (data, Image.open(io.BytesIO(data)), wide):
        result = prepare(picture, as_is(256, 256))
        for channel in range(3):
            np.testing.assert_array_equal(result[..., channel], expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("F", (9, 6), 0.5), "floating-point picture has no defined brightness"),
        (Image.new("I", (9, 6), 65536), "32-bit picture with values 65536 to 65536"),
        (Image.new("I", (9, 6), -1), "32-bit picture with values -1 to -1"),
    ],
)
def test_modes_without_a_brightness_range_are_refused(image, message):
    refused(image, "mode", message)


@pytest.mark.parametrize("format_", ["WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(format_):
    first, second = Image.new("RGB", (9, 6), (255, 0, 0)), Image.new("RGB", (9, 6), (0, 0, 255))
    options = {"lossless": True} if format_ == "WEBP" else {}
    data = encoded(first, format_, save_all=True, append_images=[second], duration=50, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(prepare(data, SMALL), np.asarray(first))


# Refusals of encoded pictures


def test_a_missing_file_is_refused(tmp_path):
    error = refused(tmp_path / "none.jpg", "missing", r"There is no file .*none\.jpg")
    assert error.path == str(tmp_path / "none.jpg")


def test_a_folder_is_refused(tmp_path):
    assert refused(tmp_path, "unreadable", "cannot be read: .*directory").path == str(tmp_path)


def test_a_path_with_a_nul_is_refused():
    refused("a\0b.jpg", "unreadable", "null byte")


def test_a_text_file_named_jpg_is_refused_and_named(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not a picture at all")
    error = refused(
        path, "format", r"notes\.jpg is not a JPEG, PNG, WEBP, BMP picture \(20 bytes, starts with"
    )
    assert error.path == str(path)


def test_empty_bytes_are_refused():
    refused(b"", "format", r"The picture is not a .* \(0 bytes")


@pytest.mark.parametrize("format_", ["GIF", "TIFF", "PPM", "ICO"])
def test_formats_that_are_not_allowed_are_refused(format_):
    data = encoded(Image.fromarray(noise(16, 16)), format_)
    assert Image.open(io.BytesIO(data)).format == format_
    refused(data, "format", "is not a JPEG, PNG, WEBP, BMP picture")


def test_a_truncated_jpeg_is_refused_and_named(tmp_path):
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: len(data) * 2 // 3])
    assert refused(path, "truncated", r"cut\.jpg cannot be decoded: .*truncated").path == str(path)


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("filler", [b"\x00", b"\xff"], ids=["zeros", "erased"])
def test_a_jpeg_whose_end_was_never_written_is_truncated(progressive, filler):
    data = encoded(Image.fromarray(noise(64, 64)), "JPEG", progressive=progressive)
    assert data.endswith(b"\xff\xd9")
    for kept in (len(data) * 2 // 3, len(data) - 100, len(data) - 2):
        refused(data[:kept] + filler * (len(data) - kept), "truncated", "its end marker is missing")
    prepare(data + filler * 100, SMALL)  # what follows the end is nobody's business


def test_a_jpeg_without_its_end_marker_is_truncated():
    refused(encoded(Image.fromarray(noise(64, 64)), "JPEG")[:-2], "truncated", "its end marker is missing")


@pytest.mark.parametrize("options", [{}, {"lossless": True}], ids=["lossy", "lossless"])
def test_a_cut_webp_is_truncated_and_says_how_much_is_there(options):
    data = encoded(Image.fromarray(noise(64, 64)), "WEBP", **options)
    refused(data[:-1], "truncated", f"it has {len(data) - 1} of {len(data)} bytes")


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_picture_cut_anywhere_is_an_image_error_or_whole(format_):
    picture = Image.fromarray(noise(16, 16))
    data = encoded(picture, format_)
    for length in range(0, len(data) - 16, 37):
        with pytest.raises(ImageError) as caught:
            prepare(data[:length], SMALL)
        assert caught.value.reason in {"format", "truncated", "corrupt"}


def test_flipped_bytes_give_a_picture_or_an_image_error():
    data = encoded(Image.fromarray(noise(16, 16)), "PNG")
    reasons = set()
    for position in range(8, len(data), 23):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about sizes
            try:
                prepare(bytes(broken), SMALL)
            except ImageError as error:
                reasons.add(error.reason)
    assert "corrupt" in reasons


@pytest.mark.parametrize("side", [7072, 10_000, 20_000, 2**31 - 1])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_huge_picture_is_refused_from_its_header(side, action):
    # Over our limit; over Pillow's warning; over Pillow's error. There is no pixel data to decode.
    assert side * side > MAX_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        refused(png_header(side, side), "too_large", "pixels")


def test_the_same_header_with_a_small_size_fails_only_at_decoding():
    with pytest.raises(ImageError) as caught:
        prepare(png_header(7000, 7000), SMALL)
    assert caught.value.reason in {"truncated", "corrupt"}


def test_too_many_bytes_are_refused(tmp_path):
    refused(bytes(MAX_BYTES + 1), "too_large", f"has {MAX_BYTES + 1} bytes, the limit is {MAX_BYTES}")
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # a hole: nothing is written
    error = refused(path, "too_large", f"big.png has {MAX_BYTES + 1} bytes, the limit is {MAX_BYTES}")
    assert error.path == str(path)


@pytest.mark.skipif("not __import__('os').path.exists('/dev/zero')", reason="needs /dev/zero")
def test_an_endless_file_is_not_read_to_its_end():
    refused("/dev/zero", "unreadable", "a pipe or a device, no file")


def test_a_pipe_that_nobody_writes_into_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "unreadable", "a pipe or a device, no file")


def test_a_picture_too_elongated_to_resize_is_refused():
    refused(Image.new("L", (1_000_000, 1)), "too_large", "1000000 x 1 is too elongated", contract=CROP)
    assert prepare(Image.new("L", (1_000_000, 1)), SMALL).shape == (6, 9, 3)


@pytest.mark.parametrize("contract", [SMALL, CROP], ids=["squash", "shorter-side"])
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_a_picture_without_pixels_is_refused(size, contract):
    refused(Image.new("RGB", size), "type", f"{size[0]} x {size[1]} pixels", contract=contract)


def test_a_closed_image_is_refused():
    image = Image.new("RGB", (9, 6))
    image.close()
    refused(image, "corrupt", "cannot be decoded: .*closed")


@pytest.mark.parametrize("picture", [None, 3, [[[1, 2, 3]]], object()], ids=lambda p: type(p).__name__)
def test_other_types_are_refused(picture):
    refused(picture, "type", f"A picture must be a path, bytes, .* got {type(picture).__name__}")


# Arrays


def test_bgr_arrays_are_turned_to_rgb():
    pixels = noise(23, 31)
    bgr = np.ascontiguousarray(pixels[..., ::-1])
    np.testing.assert_array_equal(prepare(bgr, SMALL, color_order="bgr"), prepare(pixels, SMALL))
    assert not np.array_equal(prepare(bgr, SMALL), prepare(pixels, SMALL))


def test_pictures_that_know_their_order_ignore_color_order():
    data = encoded(Image.fromarray(noise(9, 6)))
    np.testing.assert_array_equal(prepare(data, SMALL, color_order="bgr"), prepare(data, SMALL))


@pytest.mark.parametrize("order", ["BGR", "rgba", None])
def test_an_unknown_color_order_is_refused(order):
    refused(noise(9, 6), "type", f"Unknown color order {order!r}; known: rgb, bgr", color_order=order)


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.zeros((6, 9, 3), np.float32), r"float32 \(6, 9, 3\)"),
        (np.zeros((6, 9, 3), np.int64), r"int64 \(6, 9, 3\)"),
        (np.zeros((6, 9, 3), bool), r"bool \(6, 9, 3\)"),
        (np.zeros((6, 9), np.uint8), r"uint8 \(6, 9\)"),
        (np.zeros((6, 9, 4), np.uint8), r"uint8 \(6, 9, 4\)"),
        (np.zeros((3, 6, 9), np.uint8), r"uint8 \(3, 6, 9\)"),
        (np.zeros((1, 6, 9, 3), np.uint8), r"uint8 \(1, 6, 9, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), r"uint8 \(0, 9, 3\)"),
        (np.zeros((6, 0, 3), np.uint8), r"uint8 \(6, 0, 3\)"),
        (np.zeros((), np.uint8), r"uint8 \(\)"),
    ],
)
def test_other_arrays_are_refused_with_what_was_got(array, got):
    refused(array, "type", rf"must be uint8 \(height, width, 3\), got {got}")


def test_an_array_with_too_many_pixels_is_refused():
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (7072, 7072, 3))  # three bytes of memory
    refused(huge, "too_large", f"over {MAX_PIXELS} pixels")


@pytest.mark.parametrize("contract", [SMALL, CROP], ids=["squash", "shorter-side"])
def test_non_contiguous_arrays_count_by_their_pixels(contract):
    big = noise(60, 50)
    views = [
        big[::2, ::3],
        big[::-1],
        big[:, ::-1],
        big.transpose(1, 0, 2),
        np.asfortranarray(big),
        big[5:, 7:],
    ]
    for view in views:
        np.testing.assert_array_equal(prepare(view, contract), prepare(view.copy(order="C"), contract))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_arrays_are_never_modified_nor_shared(order):
    for size, contract in itertools.product([(9, 6), (18, 12), (23, 31)], [SMALL, CROP, as_is(9, 6)]):
        pixels = noise(*size)
        before = pixels.copy()
        pixels.flags.writeable = False
        result = prepare(pixels, contract, color_order=order)
        assert not np.shares_memory(result, pixels)
        result[:] = 77
        np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_pil_images_are_never_modified_nor_shared(mode):
    image = Image.new(mode, (9, 6), (1, 2, 3) if mode == "RGB" else 3)
    image.getexif()[0x0112] = 6
    image.info["note"] = "kept"
    before, info = image.tobytes(), dict(image.info)
    prepare(image, SMALL)[:] = 77
    assert (image.mode, image.size, image.tobytes(), image.info) == (mode, (9, 6), before, info)
    assert image.getexif()[0x0112] == 6


def test_an_rgb_picture_of_the_right_size_shares_nothing_with_the_result():
    image = Image.fromarray(noise(9, 6))
    result = prepare(image, as_is(9, 6))
    result[:] = 77
    np.testing.assert_array_equal(np.asarray(image), noise(9, 6))


def test_decode_gives_an_upright_rgb_image():
    image = decode(oriented("PNG", 6, Image.new("L", (9, 6), 40)))
    assert (image.mode, image.size) == ("RGB", (6, 9))


# Checking without pixels


def verdict(call):
    try:
        call()
    except ImageError as error:
        return error.reason
    return "good"


@pytest.mark.parametrize(
    ("format_", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "quality": 95}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "LA", {}),
        ("WEBP", "RGB", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_a_whole_check_judges_a_picture_cut_anywhere_as_decoding_does(format_, mode, options):
    data = encoded(Image.fromarray(noise(150, 90)).convert(mode), format_, **options)
    cuts = [*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 12, len(data) + 1)]
    judged = [
        (
            verdict(lambda cut=cut: prepare(data[:cut], SMALL)),
            verdict(lambda cut=cut: check_encoded(data[:cut], SMALL, whole=True)),
        )
        for cut in cuts
    ]
    assert [checked for _, checked in judged] == [decoded for decoded, _ in judged]
    assert judged[-1] == ("good", "good")
    assert judged[len(judged) // 2][0] != "good"


def test_a_whole_check_judges_flipped_bytes_as_decoding_does():
    data = encoded(Image.fromarray(noise(64, 48)), "JPEG")
    generator = np.random.default_rng(3)
    for _ in range(300):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), 3):
            damaged[place] = generator.integers(256)
        decoded = verdict(lambda damaged=damaged: prepare(bytes(damaged), SMALL))
        checked = verdict(lambda damaged=damaged: check_encoded(bytes(damaged), SMALL, whole=True))
        assert (checked == "good") == (decoded == "good")


def test_a_check_of_the_header_sees_the_header_alone():
    data = encoded(Image.fromarray(noise(64, 48)), "PNG")
    check_encoded(data[: len(data) // 2], SMALL, whole=False)
    check_encoded(png_header(64, 48), SMALL, whole=False)
    for whole in (True, False):
        for bad in (b"", b"GIF89a", png_header(60_000, 60_000)):
            with pytest.raises(ImageError):
                check_encoded(bad, SMALL, whole=whole)
        with pytest.raises(ImageError, match="too elongated"):
            check_encoded(
                encoded(Image.new("RGB", (1, 60_000))),
                CROP.__class__(height=64, width=64, resize="shorter-side", shorter_side=64, classes=CLASSES),
                whole=whole,
            )


def test_a_callers_own_word_about_transparency_counts():
    opened = Image.open(io.BytesIO(png_of_two_pixels(2, 0, bytes([0b01100000]), (2,))))
    assert decode(opened, background=(9, 9, 9)).getpixel((1, 0)) == (9, 9, 9)
    del opened.info["transparency"]
    assert decode(opened, background=(9, 9, 9)).getpixel((1, 0)) == (170, 170, 170)
    opened.info["transparency"] = 85
    assert decode(opened, background=(9, 9, 9)).getpixel((0, 0)) == (9, 9, 9)
