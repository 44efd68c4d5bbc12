"""What the costliest pictures within the limits take, in a child process; what costs more is refused at once."""

import io
import json
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from camera_support import lzw, make_pgm, make_tiff
from PIL import Image

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures import limits as image_limits
from edgekiln.runtime.pictures.image import decode, prepare
from edgekiln.runtime.pictures.limits import (
    MAX_BYTES,
    MAX_CHUNKS,
    MAX_EXIF_BYTES,
    MAX_FILL_BYTES,
    MAX_JUNK_BYTES,
    MAX_SCANS,
    MAX_SEGMENTS,
    MAX_STRIPS,
    check_structure,
)

MAX_SECONDS, MAX_MEGABYTES = 5.0, 500.0
SIDE = 7071  # squared just below the limit of pixels
CONTRACT = Contract(height=224, width=224, resize="shorter-side", shorter_side=256, classes=("a", "b"))

CHILD = """
import json, resource, sys, time
from pathlib import Path
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.image import prepare

contract = Contract.from_json(sys.argv[2])
warm = Contract(height=8, width=8, classes=("a", "b"))
for format_ in ("JPEG", "PNG", "WEBP", "BMP"):  # Pillow's plugins are loaded once, by no picture in particular
    import io
    from PIL import Image
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, format_)
    prepare(small.getvalue(), warm)
# A picture that would take all memory must fail here, not on the machine at large.
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
def read(key):  # ru_maxrss would do, if it did not begin with the parent's
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1])
before = read("VmRSS")
start = time.process_time()
try:
    outcome = "x".join(map(str, prepare(sys.argv[1], contract).shape))
except ImageError as error:
    outcome = error.reason
print(json.dumps([time.process_time() - start, (read("VmHWM") - before) / 1024, outcome]))
"""


def measure(path, contract=CONTRACT):
    """(seconds of CPU, MB above what the process had, the shape or the reason of refusal); decoding has one thread."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), contract.to_json()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- pictures


def encoded(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


@cache
def flat(side=SIDE, mode="RGB"):
    return Image.new(mode, (side, side), {"RGB": (10, 200, 30), "RGBA": (10, 200, 30, 90)}.get(mode, 90))


def noise(side):
    block = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    return Image.fromarray(np.tile(block, (side // 512 + 1, side // 512 + 1, 1))[:side, :side])


def turned(orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(bits, color_type, bytes_per_pixel, side=SIDE):
    """A PNG of one repeated byte: three orders of magnitude smaller than its pixels."""
    packer, rows = zlib.compressobj(1), (b"\x04" + b"\x01" * (side * bytes_per_pixel)) * 16
    packed = b"".join(packer.compress(rows) for _ in range(-(-side // 16))) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def first_scan(jpeg):
    """Its first scan, with whatever tables come before the second one."""
    start = jpeg.index(b"\xff\xda")
    return jpeg[start : jpeg.index(b"\xff\xda", start + 2)]


def with_scans(jpeg, total):
    """The picture with its first scan, the costliest, repeated until there are so many."""
    return jpeg[:-2] + first_scan(jpeg) * (total - jpeg.count(b"\xff\xda")) + jpeg[-2:]


def progressive(side, **options):
    return encoded(flat(side, options.pop("mode", "RGB")), "JPEG", progressive=True, subsampling=0, **options)


def ended_by(tail):
    jpeg = encoded(noise(64), "JPEG")
    return jpeg[:-2] + tail + jpeg[-2:]


ALLOWED = {
    "JPEG, 50 megapixels of noise": lambda: encoded(noise(SIDE), "JPEG", quality=75),
    "JPEG, CMYK": lambda: encoded(flat(SIDE, "CMYK"), "JPEG", subsampling=0),
    "JPEG, as many scans as allowed": lambda: with_scans(progressive(6400), MAX_SCANS),
    "JPEG, progressive CMYK": lambda: with_scans(progressive(5900, mode="CMYK"), MAX_SCANS),
    "JPEG, scans and junk": lambda: with_junk(with_scans(progressive(6400), MAX_SCANS), b"\0" * (MAX_JUNK_BYTES - 9)),
    "JPEG, runs of 255": lambda: ended_by((b"\xff" * MAX_FILL_BYTES + b"\xd0") * 15),
    "PNG, a deflate bomb": lambda: raw_png(8, 2, 3),
    "PNG, alpha, turned": lambda: encoded(flat(SIDE, "RGBA"), "PNG", compress_level=1, **turned()),
    "PNG, 16 bits with alpha": lambda: raw_png(16, 6, 8),
    "PNG, 16 bits grey": lambda: raw_png(16, 0, 2),
    "PNG, many chunks": lambda: chunks(MAX_CHUNKS - 3, b"abCd"),
    "WebP, noise": lambda: encoded(noise(5120), "WEBP", quality=50, method=0),
}  # fmt: skip


DEEP_SIDE = 5900  # squared just below what 420 MB hold at 12 bytes a pixel


@cache
def twelve(side, channels=1):
    """Noise of 12 bits, in blocks: what is packed keeps a codec busy."""
    block = np.random.default_rng(0).integers(0, 4096, (64, 64, channels), np.uint16)
    return np.tile(block, (side // 64 + 1, side // 64 + 1, 1))[:side, :side].squeeze()


def lzw_zeros(count):
    """So many zeros as libtiff packs them: each code stands for one zero more, until the table is full."""
    codes, left = [], count
    while left:
        codes.append(f"{256:0{12 if codes else 9}b}")
        for run in range(1, 3837):
            width, taken = max(9, (257 + run).bit_length()), min(run, left)
            codes.append(f"{0 if taken == 1 else 256 + taken:0{width}b}")
            left -= taken
            if not left:
                break
    bits = "".join([*codes, f"{257:0{width}b}"])
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def test_zeros_are_packed_as_libtiff_packs_them():
    for count in (1, 1000, 10_000_000):
        assert lzw_zeros(count) == lzw(bytes(count))


CAMERA_ALLOWED = {
    "TIFF, grey": lambda: make_tiff(twelve(5700), rows=8),
    "TIFF, grey, deflate, in one strip, turned": lambda: make_tiff(
        np.zeros((SIDE, SIDE), np.uint16), compression=8, predictor=2, tags={274: (3, [6])}),
    "TIFF, RGB, LZW, in one strip": lambda: make_tiff(
        np.zeros((DEEP_SIDE, DEEP_SIDE, 3), np.uint16), compression=5, strips=[lzw_zeros(DEEP_SIDE**2 * 6)]),
    "TIFF, as many strips as allowed": lambda: make_tiff(
        np.zeros((MAX_STRIPS, 700), np.uint16), rows=1, compression=8,
        strips=[zlib.compress(bytes(1400))] * MAX_STRIPS),
    "TIFF, LZW, as many strips as allowed": lambda: make_tiff(
        np.zeros((MAX_STRIPS, 700), np.uint16), rows=1, strips=[lzw(bytes(1400))] * MAX_STRIPS, compression=5),
    "PGM": lambda: make_pgm(twelve(5700), 4095),
    "PNG, 16 bits of colour": lambda: raw_png(16, 2, 6, DEEP_SIDE),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAMERA_ALLOWED)
def test_the_costliest_files_of_cameras_stay_within_the_budget(kind, tmp_path):
    data = CAMERA_ALLOWED[kind]()
    assert len(data) <= MAX_BYTES
    (tmp_path / "picture").write_bytes(data)
    bits = 16 if kind.startswith("PNG") else 12
    seconds, megabytes, outcome = measure(tmp_path / "picture", replace(CONTRACT, sensor_bits=bits))
    assert outcome == "224x224x3"
    assert seconds < MAX_SECONDS
    assert megabytes < MAX_MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALLOWED)
def test_the_costliest_pictures_within_the_limits_stay_within_the_budget(kind, tmp_path):
    data = ALLOWED[kind]()
    assert len(data) <= MAX_BYTES
    (tmp_path / "picture").write_bytes(data)
    seconds, megabytes, outcome = measure(tmp_path / "picture")
    assert outcome == "224x224x3"
    assert seconds < MAX_SECONDS
    assert megabytes < MAX_MEGABYTES


def test_the_child_sees_what_a_picture_takes(tmp_path):
    """Against a known amount: 16 megapixels are 64 MB, and as much again turned upright."""
    (tmp_path / "plain.png").write_bytes(raw_png(8, 2, 3, 4000))
    (tmp_path / "turned.jpg").write_bytes(encoded(flat(4000), "JPEG", **turned()))
    assert 60 < measure(tmp_path / "plain.png")[1] < 90
    assert 120 < measure(tmp_path / "turned.jpg")[1] < 160


# -- what costs more


def segments(count, kind=b"\xff\xfe\x00\x02"):
    jpeg = encoded(flat(64), "JPEG")
    return jpeg[:2] + kind * count + jpeg[2:]


def chunks(count, kind):
    png = encoded(flat(64), "PNG")
    at = 33 if kind != b"IDAT" else len(png) - 12
    return png[:at] + chunk(kind, b"") * count + png[at:]


def photoshop(count):
    resources = b"Photoshop 3.0\x00" + (b"8BIM" + bytes(8)) * (count // 8)
    return segments(8, b"\xff\xed" + struct.pack(">H", len(resources) + 2) + resources)


def arithmetic():
    jpeg = encoded(flat(64), "JPEG")
    return jpeg.replace(b"\xff\xc0", b"\xff\xc9", 1)


def run_length():
    """A BMP of 8 by 1 pixels; its compression is run lengths, and its pixels a jump."""
    header = struct.pack("<IiiHHIIiiII", 40, 8, 1, 1, 8, 1, 4, 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    return (
        struct.pack("<2sIHHI", b"BM", start + 6, 0, 0, start)
        + header
        + bytes(1024)
        + b"\x00\x02\xff\xff\x00\x01"
    )


def hidden_scans():
    """The end of the picture, as a careless search would find it, stands inside a comment before the many scans."""
    jpeg = progressive(64)
    comment = b"\xff\xfe\x00\x04\xff\xd9"
    return jpeg[:-2] + comment + first_scan(jpeg) * MAX_SCANS + jpeg[-2:]


REFUSED = {
    "pixels": (lambda: encoded(Image.new("1", (SIDE + 1, SIDE)), "PNG"), "too_large", "pixels, the limit is"),
    "progressive memory": (lambda: progressive(6500), "too_large", r"needs 422 MB to be decoded, the limit is 420 MB"),
    "scans in turn": (lambda: encoded(flat(6500), "JPEG", subsampling=0).replace(
        b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11", b"\xff\xda\x00\x0c\x01\x01\x00\x02\x11\x03\x11"),
        "too_large", "needs 422 MB"),
    "WebP memory": (lambda: encoded(flat(5130), "WEBP", lossless=True, method=0), "too_large", "needs 421 MB"),
    "scans": (lambda: with_scans(progressive(64), MAX_SCANS + 1), "too_large", f"over {MAX_SCANS} scans"),
    "hidden scans": (hidden_scans, "too_large", f"over {MAX_SCANS} scans"),
    "comments": (lambda: segments(MAX_SEGMENTS), "too_large", f"over {MAX_SEGMENTS} segments"),
    "fill bytes": (lambda: segments(MAX_SEGMENTS, b"\xff"), "too_large", f"over {MAX_SEGMENTS} segments"),
    "255s in a row": (lambda: ended_by(b"\xff" * (MAX_BYTES - 10_000)), "too_large", f"over {MAX_FILL_BYTES} fill"),
    "zeros": (lambda: segments(MAX_SEGMENTS, b"\xff\x00"), "too_large", f"over {MAX_SEGMENTS} segments"),
    "starts": (lambda: segments(MAX_SEGMENTS, b"\xff\xd8"), "too_large", f"over {MAX_SEGMENTS} segments"),
    "Photoshop": (lambda: photoshop(10_008), "too_large", "over 10000 Photoshop resources"),
    "arithmetic": (arithmetic, "format", "a JPEG of a rare kind"),
    "chunks": (lambda: chunks(MAX_CHUNKS, b"abCd"), "too_large", f"over {MAX_CHUNKS} chunks"),
    "empty data": (lambda: chunks(MAX_CHUNKS, b"IDAT"), "too_large", f"over {MAX_CHUNKS} chunks"),
    "run lengths": (run_length, "format", "run-length encoded BMP"),
    "EXIF": (lambda: encoded(flat(64), "PNG", exif=b"MM\x00*" + bytes(MAX_EXIF_BYTES)), "too_large", "EXIF of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_costs_more_is_refused_before_it_costs_anything(kind):
    make, reason, message = REFUSED[kind]
    data = make()
    start = time.process_time()
    with pytest.raises(ImageError, match=message) as caught:
        prepare(data, CONTRACT)
    assert caught.value.reason == reason
    assert (
        time.process_time() - start < 1
    )  # decoding any of these takes longer, or is refused by its size only


@pytest.mark.parametrize(
    ("make", "count"), [(segments, MAX_SEGMENTS - 20), (lambda n: chunks(n, b"abCd"), 1000), (photoshop, 800)]
)
def test_fewer_of_them_are_taken(make, count):
    assert prepare(make(count), CONTRACT).shape == (224, 224, 3)


@pytest.mark.parametrize("position", [0, 1, 2, 50, 200, 620])
def test_broken_files_pass_the_walk_and_are_left_to_the_decoder(position):
    for data in (encoded(flat(64), "JPEG"), encoded(flat(64), "PNG"), progressive(64)):
        if b"\xff\xda" not in data[:position]:
            check_structure(data[:position], "cut")
        check_structure(data[:position] + b"\xff" * 9 + data[position:], "filled")


def test_a_jpeg_cut_behind_its_first_scan_does_not():
    for data in (encoded(flat(64), "JPEG"), progressive(64)):
        for position in (data.index(b"\xff\xda") + 12, len(data) - 1):
            with pytest.raises(ImageError, match="its end marker is missing"):
                check_structure(data[:position], "cut")


def test_what_is_found_in_a_jpeg():
    walk = check_structure(encoded(flat(64), "JPEG"), "it")
    assert (walk.scans, walk.components, walk.buffered) == (1, 3, False)
    walk = check_structure(progressive(64), "it")
    assert (walk.scans, walk.components, walk.buffered, walk.ended) == (10, 3, True, True)
    walk = check_structure(encoded(flat(64, "L"), "JPEG"), "it")
    assert (walk.scans, walk.components, walk.buffered) == (1, 1, False)


def test_a_picture_behind_the_picture_does_not_count():
    """Phones append a second JPEG, for depth or brightness."""
    jpeg = encoded(flat(64), "JPEG")
    walk = check_structure(jpeg + jpeg * 100, "it")
    assert (walk.scans, walk.buffered) == (1, False)
    assert decode(jpeg + jpeg).size == (64, 64)


def test_coded_data_that_looks_like_markers_does_not_count():
    jpeg = encoded(noise(512), "JPEG", quality=95, restart_marker_blocks=1)
    assert jpeg.count(b"\xff\x00") > 50
    assert jpeg.count(b"\xff\xd0") > 50
    assert check_structure(jpeg, "it").scans == 1


def with_junk(data, junk):
    """Before the first quantization table, where Pillow and libjpeg pass over it."""
    place = data.index(b"\xff\xdb")
    return data[:place] + junk + data[place:]


@pytest.mark.parametrize("junk", [b"\0", b"junk", b"\0" * 10_000, b"\xff\0", b"\0\xff\xff"])
def test_junk_between_segments_hides_nothing(junk):
    whole = progressive(64)
    walk = check_structure(with_junk(whole, junk), "it")
    assert (walk.scans, walk.components, walk.buffered, walk.ended) == (10, 3, True, True)
    assert np.array_equal(prepare(with_junk(whole, junk), CONTRACT), prepare(whole, CONTRACT))
    with pytest.raises(ImageError, match="scans"):
        check_structure(with_junk(with_scans(progressive(64), MAX_SCANS + 1), junk), "it")


@pytest.mark.parametrize("marker", [0x01, 0x02, 0xBF])
def test_a_marker_without_a_length_hides_no_scans(marker):
    data = with_scans(progressive(64), MAX_SCANS + 1)
    place = data.index(b"\xff\xda") + 14  # in the first scan's codes
    hiding = bytes([0xFF, marker]) + len(data).to_bytes(2, "big")
    with pytest.raises(ImageError, match="scans"):
        check_structure(data[:place] + hiding + data[place:], "it")


def test_a_jpeg_that_the_walk_cannot_follow_is_refused(monkeypatch):
    for found, message, reason in (
        ([], "it has no scan", "truncated"),
        ([(0xDA, b""), (0xD9, b"")], "its segments cannot be followed", "corrupt"),
    ):
        monkeypatch.setattr(image_limits, "_segments", lambda data, name, found=found: iter(found))
        with pytest.raises(ImageError, match=message) as caught:
            prepare(progressive(64), CONTRACT)
        assert caught.value.reason == reason


def test_much_junk_between_segments_is_refused():
    empty = b"\xff\xe0\x00\x02"
    for junk in (b"\0" * (MAX_JUNK_BYTES + 1), (b"\0" * 400_000 + empty) * 3):
        with pytest.raises(ImageError, match="bytes between its segments"):
            check_structure(with_junk(progressive(64), empty + junk), "it")
