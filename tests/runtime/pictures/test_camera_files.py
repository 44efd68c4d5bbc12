"""Files of industrial cameras: what is taken with ``sensor_bits``, to the value, and what is refused in which words."""

import io
import struct
import zlib
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from camera_support import chunk, lzw, make_pgm, make_png, make_tiff
from PIL import Image, features

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ExitCode, ImageError
from edgekiln.runtime.pictures.image import check_encoded, decode, prepare
from edgekiln.runtime.pictures.levels import scale_levels
from edgekiln.runtime.pictures.limits import MAX_STRIPS, MAX_TAGS

WIDTH, HEIGHT = 37, 23


def contract(bits=12, width=WIDTH, height=HEIGHT, **changes):
    """It changes nothing about a picture of this size but its levels."""
    return Contract(
        height=height, width=width, interpolation="nearest", classes=("a", "b"), sensor_bits=bits, **changes
    )


def values(bits=12, channels=1, width=WIDTH, height=HEIGHT):
    """uint16 over the whole range, black and white among them."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    made = np.random.default_rng(bits + channels).integers(0, 2**bits, shape, np.uint16)
    made[0, 0], made[-1, -1] = 0, 2**bits - 1
    return made


def bytes_of(channels=1):
    return (values(8, channels) & 255).astype(np.uint8)


@cache
def exact_levels(bits):
    white = 2**bits - 1
    return np.array([round(Fraction(value * 255, white)) for value in range(white + 1)], np.uint8)


def expected(samples, bits):
    """The formula in exact numbers, as uint8 (H, W, 3)."""
    levels = samples if samples.dtype == np.uint8 else exact_levels(bits)[samples]
    return np.repeat(levels[..., None], 3, axis=2) if samples.ndim == 2 else levels


def saved(image, format_="TIFF", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def refused(picture, reason, message, bits=12):
    with pytest.raises(ImageError, match=message) as caught:
        prepare(picture, contract(bits))
    assert caught.value.reason == reason
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.hint
    return caught.value


# -- the formula


@pytest.mark.parametrize("bits", range(8, 17))
def test_every_value_is_scaled_by_the_formula_and_none_lies_between_two_levels(bits):
    white = 2**bits - 1
    assert all(2 * value * 255 % white or value * 255 % white == 0 for value in range(white + 1))
    np.testing.assert_array_equal(scale_levels(np.arange(white + 1), bits, "it"), exact_levels(bits))


def test_sixteen_bits_are_scaled_as_without_the_key():
    samples = values(16)
    data = saved(Image.fromarray(samples), "PNG")
    np.testing.assert_array_equal(prepare(data, contract(16)), prepare(data, contract(None)))


# -- what is taken


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"])
@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("samples", [bytes_of(), bytes_of(3), values()], ids=["grey 8", "RGB 8", "grey 12"])
def test_a_tiff_that_pillow_wrote(compression, predictor, samples):
    options = {"tiffinfo": {317: 2}} if predictor == 2 and compression != "raw" else {}
    data = saved(Image.fromarray(samples), compression=compression, **options)
    np.testing.assert_array_equal(prepare(data, contract()), expected(samples, 12))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("compression", "predictor"), [(1, 1), (5, 1), (5, 2), (8, 1), (8, 2), (32946, 2)])
@pytest.mark.parametrize("rows", [1, 7, HEIGHT, 2**32 - 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tiff_of_any_byte_order_and_strips(order, compression, predictor, rows, channels):
    samples = values(14, channels)
    options = {} if rows <= HEIGHT else {"tags": {278: (4, [rows])}}
    data = make_tiff(
        samples, order=order, compression=compression, predictor=predictor, rows=min(rows, HEIGHT), **options
    )
    np.testing.assert_array_equal(prepare(data, contract(14)), expected(samples, 14))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_as_it_says(orientation):
    samples = values()
    data = make_tiff(samples, tags={274: (3, [orientation])})
    turned = decode(data, sensor_bits=12)
    plain = Image.fromarray(expected(samples, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(turned, decode(saved(plain, "PNG", exif=exif)))


def test_tags_that_have_defaults_may_be_left_out():
    data = make_tiff(values(), tags=dict.fromkeys((259, 277, 278, 317)))
    np.testing.assert_array_equal(prepare(data, contract()), expected(values(), 12))


@pytest.mark.parametrize("white", [4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pgm_and_a_ppm_of_two_bytes(white, channels):
    samples = values(12, channels)
    for comment in (b"", b"# a camera's\n#\xff second line\r"):
        data = make_pgm(samples, white, comment=comment)
        np.testing.assert_array_equal(prepare(data, contract()), expected(samples, 12))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pgm_and_a_ppm_that_pillow_wrote(channels):
    samples = bytes_of(channels)
    data = saved(Image.fromarray(samples), "PPM")
    np.testing.assert_array_equal(prepare(data, contract()), expected(samples, 12))
    grey = values(16)
    np.testing.assert_array_equal(
        prepare(saved(Image.fromarray(grey), "PPM"), contract(16)), expected(grey, 16)
    )


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_png_keeps_all_bits_grey_and_colour(bits):
    grey, color = values(bits), values(bits, 3)
    np.testing.assert_array_equal(
        prepare(saved(Image.fromarray(grey), "PNG"), contract(bits)), expected(grey, bits)
    )
    np.testing.assert_array_equal(prepare(make_png(color), contract(bits)), expected(color, bits))


def test_a_png_of_16_bits_is_turned_by_its_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = make_png(values(12, 3), before=chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
    wanted = np.rot90(expected(values(12, 3), 12), -1)
    np.testing.assert_array_equal(prepare(turned, contract(width=HEIGHT, height=WIDTH)), wanted)


def test_the_transparent_value_of_grey_shows_the_background():
    samples = values()
    image = Image.fromarray(samples)
    data = saved(image, "PNG", transparency=int(samples[3, 4]))
    wanted = expected(samples, 12).copy()
    wanted[samples == samples[3, 4]] = (9, 8, 7)
    np.testing.assert_array_equal(prepare(data, contract(background=(9, 8, 7))), wanted)


def test_arrays_and_pil_images_give_the_same():
    grey, color = values(), values(12, 3)
    np.testing.assert_array_equal(prepare(grey, contract()), expected(grey, 12))
    np.testing.assert_array_equal(prepare(color, contract()), expected(color, 12))
    swapped = color[::-1, :, ::-1]  # not contiguous
    np.testing.assert_array_equal(prepare(swapped, contract(), color_order="bgr"), expected(color, 12)[::-1])
    np.testing.assert_array_equal(prepare(Image.fromarray(grey), contract()), expected(grey, 12))
    np.testing.assert_array_equal(
        prepare(Image.fromarray(grey.astype(np.int32)), contract()), expected(grey, 12)
    )


def test_a_picture_is_resized_after_it_was_scaled(tmp_path):
    samples = values(12, width=90, height=70)
    wanted = prepare(expected(samples, 12), contract(None))
    for name, data in (
        ("a.tif", make_tiff(samples, compression=8)),
        ("b.pgm", make_pgm(samples, 4095)),
        ("c.png", saved(Image.fromarray(samples), "PNG")),
    ):
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(prepare(tmp_path / name, contract()), wanted)
        check_encoded(data, contract(), whole=True)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "BMP"])
def test_pictures_of_eight_bits_are_what_they_are_without_the_key(format_):
    data = saved(Image.fromarray(bytes_of(3)), format_)
    np.testing.assert_array_equal(prepare(data, contract()), prepare(data, contract(None)))


def test_a_bmp_of_two_bytes_a_pixel_is_none_of_16_bits_a_channel():
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    head = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + masks
    data = struct.pack("<2sIHHI", b"BM", 70, 0, 0, 66) + head + struct.pack("<2H", 0xF800, 0x001F)
    wanted = [[[255, 0, 0], [0, 0, 255]]]
    for picture in (data, Image.open(io.BytesIO(data))):
        assert prepare(picture, contract(width=2, height=1)).tolist() == wanted


# -- off by default


@pytest.mark.parametrize(
    "data",
    [
        make_tiff(bytes_of()),
        make_tiff(values(), order=">"),
        make_pgm(values(), 4095),
        make_pgm(bytes_of(3), 255),
    ],
)
def test_without_the_key_they_are_refused_and_the_key_is_named(data):
    with pytest.raises(ImageError, match="is not a JPEG, PNG, WEBP, BMP picture") as caught:
        prepare(data, contract(None))
    assert caught.value.reason == "format"
    assert "data.sensor_bits" in caught.value.hint


def test_without_the_key_an_array_of_16_bits_is_refused():
    with pytest.raises(ImageError, match="must be uint8") as caught:
        prepare(values(12, 3), contract(None))
    assert caught.value.reason == "type"


def test_with_the_key_a_refusal_names_all_formats():
    refused(b"no picture", "format", "is not a JPEG, PNG, WEBP, BMP, TIFF, PGM, PPM picture")


# -- values that do not fit


@pytest.mark.parametrize(
    "make",
    [
        lambda v: saved(Image.fromarray(v), "PNG"),
        lambda v: make_png(np.dstack([v, v, v])),
        make_tiff,
        lambda v: make_tiff(v, compression=5, predictor=2),
        lambda v: make_pgm(v, 65535),
        lambda v: v,
        Image.fromarray,
    ],
    ids=["PNG", "RGB PNG", "TIFF", "LZW", "PGM", "array", "PIL"],
)
def test_a_value_above_the_range_is_refused_and_never_clipped(make):
    samples = values(10)
    samples[4, 5] = 1024
    error = refused(
        make(samples), "mode", r"values from 0 to 1024; a sensor of 10 bits gives 0 to 1023", bits=10
    )
    assert "data.sensor_bits" in error.hint
    samples[4, 5] = 1023
    prepare(make(samples), contract(10))


def test_a_pgm_that_states_another_range_is_refused():
    refused(
        make_pgm(values(10), 1023), "mode", "says that its brightest value is 1023; of 12 bits it is 4095"
    )
    refused(
        make_pgm(bytes_of() // 16, 15), "mode", "brightest value is 15; of one byte a sample, 255 is taken"
    )


def test_a_picture_of_which_pillow_drops_or_scales_bits_is_refused():
    dropped = [make_png(values(12, 3)), make_tiff(values(12, 3)), make_tiff(values(12, 3), order=">")]
    scaled = [make_pgm(values(), 4095), make_pgm(values(12, 3), 4095)]
    for data in (*dropped, *scaled):
        error = refused(Image.open(io.BytesIO(data)), "mode", "does not keep the values of its file")
        assert "uint16 array" in error.hint
    kept = Image.open(io.BytesIO(make_tiff(values())))
    np.testing.assert_array_equal(prepare(kept, contract()), expected(values(), 12))


@pytest.mark.parametrize("shape", [(4,), (4, 4, 1), (4, 4, 2), (4, 4, 4), (2, 4, 4, 3)])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(ImageError, match=r"uint16 \(height, width\) or \(height, width, 3\)"):
        prepare(np.zeros(shape, np.uint16), contract())


def test_an_array_without_pixels_is_refused():
    with pytest.raises(ImageError, match="0 x 4 pixels"):
        prepare(np.zeros((4, 0), np.uint16), contract())


# -- kinds that are not taken


def tiff_pages():
    return saved(Image.fromarray(values()), save_all=True, append_images=[Image.fromarray(values())])


def big_tiff():
    return saved(Image.fromarray(values()), big_tiff=True)


KINDS = {
    "pages": (tiff_pages, "format", "a TIFF of several pages"),
    "tiles": (lambda: make_tiff(values(), tags={322: (3, [16]), 323: (3, [16])}), "format", "a TIFF of tiles"),
    "BigTIFF": (big_tiff, "format", "a TIFF of the kind BigTIFF"),
    "CMYK": (lambda: saved(Image.new("CMYK", (9, 9))), "format", "of CMYK inks"),
    "palette": (lambda: saved(Image.new("P", (9, 9))), "format", "of palette colours"),
    "one bit": (lambda: saved(Image.new("1", (9, 9))), "format", "of 1 bits a sample"),
    "12 bits, packed": (lambda: make_tiff(values(), tags={258: (3, [12])}), "format", "of 12 bits a sample"),
    "32 bits": (lambda: saved(Image.new("I", (9, 9))), "mode", "of signed integers"),
    "float": (lambda: saved(Image.new("F", (9, 9), 0.5)), "mode", "of floating-point values"),
    "signed": (lambda: make_tiff(values(), tags={339: (3, [2])}), "mode", "of signed integers"),
    "negative": (lambda: make_tiff(values(), tags={262: (3, [0])}), "format", "of negative colours"),
    "mosaic": (lambda: make_tiff(values(), tags={262: (3, [32803])}), "format", "raw colour mosaic"),
    "alpha": (lambda: saved(Image.new("RGBA", (9, 9))), "format", "of 4 channels, transparency among them"),
    "two channels": (lambda: make_tiff(values(), tags={277: (3, [2])}), "format", "of 2 channels"),
    "planes": (lambda: make_tiff(values(12, 3), tags={284: (3, [2])}), "format", "of planes"),
    "bit order": (lambda: make_tiff(values(), tags={266: (3, [2])}), "format", "bits in reverse order"),
    "predictor 3": (lambda: make_tiff(values(), compression=8, tags={317: (3, [3])}), "format", "of predictor 3"),
    "JPEG in TIFF": (lambda: saved(Image.new("RGB", (16, 16)), compression="jpeg"), "format", "compressed by JPEG"),
    "PackBits": (lambda: saved(Image.new("L", (9, 9)), compression="packbits"), "format", "compressed by PackBits"),
    "fax": (lambda: saved(Image.new("1", (9, 9)), compression="group4"), "format", "compressed by CCITT"),
    "unknown": (lambda: make_tiff(values(), tags={259: (3, [4711])}), "format", "compressed by method 4711"),
    "P1": (lambda: b"P1\n2 1\n0 1\n", "format", "a bitmap of one bit"),
    "P2": (lambda: b"P2\n2 1\n4095\n0 4095\n", "format", r"written in text \(PGM of kind P2\)"),
    "P3": (lambda: b"P3\n1 1\n255\n0 1 2\n", "format", r"written in text \(PPM of kind P3\)"),
    "P4": (lambda: saved(Image.new("1", (9, 9)), "PPM"), "format", "a bitmap of one bit"),
    "P7": (lambda: b"P7\nWIDTH 1\n", "format", "a PAM"),
    "PFM": (lambda: saved(Image.new("F", (9, 9)), "PPM"), "format", "of floating-point values"),
    "several PGM": (lambda: 2 * make_pgm(values(), 4095), "format", "holds several pictures"),
    "alpha of 16 bits": (lambda: make_png(values(12, 4), color=6), "mode", "16 bits a channel with transparency"),
    "grey and alpha": (lambda: make_png(values(12, 2), color=4), "mode", "16 bits a channel with transparency"),
    "transparent colour": (
        lambda: make_png(values(12, 3), before=chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))), "mode", "transparency"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_refused_by_their_name(kind, tmp_path):
    make, reason, message = KINDS[kind]
    data = make()
    refused(data, reason, f"The picture .*{message}")
    (tmp_path / "it.tif").write_bytes(data)
    assert str(tmp_path / "it.tif") in str(refused(tmp_path / "it.tif", reason, message))


# -- damage, and headers that lie


def entry(data, tag):
    """Where a tag's twelve bytes begin."""
    return next(at for at in range(10, len(data), 12) if data[at : at + 2] == struct.pack("<H", tag))


def with_entry(data, tag, kind, count, value):
    at = entry(data, tag)
    return data[:at] + struct.pack("<HHII", tag, kind, count, value) + data[at + 12 :]


TIFF = make_tiff(values(), rows=5)
PACKED = make_tiff(values(), rows=5, compression=8)
LZW = make_tiff(values(), rows=5, compression=5)
DAMAGED = {
    "a header alone": (TIFF[:8], "truncated", "its tags lie outside"),
    "tags nowhere": (TIFF[:4] + b"\xff\xff\xff\x7f" + TIFF[8:], "truncated", "its tags lie outside"),
    "tags upon the header": (TIFF[:4] + bytes(4) + TIFF[8:], "truncated", "its tags lie outside"),
    "tags in the header": (TIFF[:4] + b"\4" + bytes(3) + TIFF[8:], "truncated", "its tags lie outside"),
    "no tags": (TIFF[:8] + bytes(6), "corrupt", "its tag 262 has no values"),
    "many tags": (TIFF[:8] + b"\xff\xff" + TIFF[10:], "too_large", f"over {MAX_TAGS} tags"),
    "a list outside": (with_entry(TIFF, 273, 4, 5, len(TIFF) - 8), "truncated", "its tag 273 lies outside"),
    "a list larger than the file": (with_entry(TIFF, 273, 4, 60_000, 100), "truncated", "its tag 273 lies outside"),
    "a longer list": (with_entry(TIFF, 273, 4, 2**32 - 1, 100), "too_large", f"over {MAX_STRIPS} strips"),
    "a type": (with_entry(TIFF, 273, 12, 5, 100), "corrupt", "its tag 273 is of type 12"),
    "no values": (with_entry(TIFF, 256, 4, 0, 5), "corrupt", "its tag 256 is of type 4 and holds 0 values"),
    "two widths": (with_entry(TIFF, 256, 3, 2, 0x00050006), "corrupt", "its tag 256 has 2 values"),
    "no width": (make_tiff(values(), tags={256: None}), "corrupt", "its tag 256 has no values"),
    "no pixels": (with_entry(TIFF, 256, 4, 1, 0), "corrupt", "it has 0 x 23 pixels"),
    "no rows": (with_entry(TIFF, 278, 4, 1, 0), "corrupt", "its strips have no rows"),
    "too few strips": (with_entry(TIFF, 257, 4, 1, 26), "corrupt", "5 places of strips and 5 lengths, wanted 6"),
    "no strips": (make_tiff(values(), tags={273: None}), "corrupt", "0 places of strips"),
    "a strip outside": (make_tiff(values(), tags={273: (4, [2**31])}), "truncated", "a strip ends outside"),
    "a long strip": (make_tiff(values(), tags={279: (4, [2**32 - 1])}), "truncated", "a strip ends outside"),
    "strips upon each other": (
        make_tiff(values(), rows=1, tags={273: (4, [9] * HEIGHT), 279: (4, [1900] * HEIGHT)}),
        "corrupt", "upon each other"),
    "pixels": (with_entry(TIFF, 256, 4, 1, 2**31), "too_large", "the limit is 50000000"),
    "a short strip": (with_entry(TIFF, 256, 4, 1, WIDTH + 1), "truncated", r"a strip has 370 of 380 bytes"),
    "a short packed strip": (with_entry(PACKED, 256, 4, 1, WIDTH + 1), "truncated", r"a strip has 370 of 380 bytes"),
    "a short LZW strip": (with_entry(LZW, 256, 4, 1, WIDTH + 1), "corrupt", "decoder error"),
    "bad deflate": (PACKED[:-300] + bytes(300), "corrupt", "Error -3 while decompressing"),
    "bad LZW": (LZW[:-300] + b"\xff" * 300, "corrupt", "decoder error"),
    "cut": (TIFF[:-1], "truncated", "a strip ends outside"),
    "PGM cut": (make_pgm(values(), 4095)[:-1], "truncated", r"has 1701 of 1702 bytes"),
    "PGM without size": (b"P5\n\n4095\n", "corrupt", "header is damaged"),
    "PGM of a long comment": (b"P5\n#" + b"x" * 70_000, "corrupt", "header is damaged"),
    "PGM of many gaps": (b"P5" + b" #\n" * 30_000, "corrupt", "header is damaged"),
    "PGM of no pixels": (b"P5\n0 5\n4095\n", "type", "has 0 x 5 pixels"),
    "PGM without white": (b"P5\n1 1\n0\n\0\0", "corrupt", "brightest value is 0, wanted 1 to 65535"),
    "PGM of 17 bits": (b"P5\n1 1\n65536\n\0\0", "corrupt", "brightest value is 65536"),
    "PGM of huge numbers": (b"P5\n999999999 999999999\n255\n", "truncated", "0 of 999999998000000001 bytes"),
    "PNG cut": (make_png(values(12, 3))[:-900], "truncated", "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_told(kind):
    data, reason, message = DAMAGED[kind]
    refused(data, reason, message)


def test_a_bomb_is_refused_by_its_header_or_costs_no_more_than_its_size():
    """Deflate is stopped at the size of the strip, and LZW by libtiff, which is told the same size."""
    bomb = zlib.compress(bytes(2**27), 9)
    wanted = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    np.testing.assert_array_equal(
        prepare(make_tiff(values(), compression=8, strips=[bomb]), contract()), wanted
    )
    np.testing.assert_array_equal(
        prepare(make_tiff(values(), compression=5, strips=[lzw(bytes(2**20))]), contract()), wanted
    )
    large = make_tiff(values(12, 3), compression=5, tags={256: (4, [6000]), 257: (4, [6000])})
    refused(large, "too_large", "6000 x 6000 pixels, needs 432 MB")


def test_many_strips_are_taken_up_to_the_limit():
    narrow = np.full((3000, 2), 4095, np.uint16)
    for compression in (1, 5, 8):
        data = make_tiff(narrow, rows=1, compression=compression)
        assert prepare(data, contract(width=2, height=3000)).min() == 255
    many = make_tiff(np.zeros((MAX_STRIPS + 1, 1), np.uint8), rows=1, strips=[b"\0"], tags={273: (4, [8])})
    refused(many, "too_large", f"over {MAX_STRIPS} strips")


def test_pillow_has_libtiff():
    assert features.check("libtiff")  # LZW is decoded by it
