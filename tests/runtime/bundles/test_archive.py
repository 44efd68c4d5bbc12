"""A bundle as a zip: read into memory under caps, refused where it could mean two things, always written the same."""

import errno
import io
import json
import os
import shutil
import stat
import struct
import zipfile
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import edgekiln.runtime.bundles.archive as archive_module
import edgekiln.runtime.bundles.archive_writer as writer_module
from edgekiln.runtime.bundles.archive import MAX_MEMBERS, MAX_RATIO, read_zip
from edgekiln.runtime.bundles.archive_writer import write_zip
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, SIGNATURE_NAME
from edgekiln.runtime.errors import BundleError, EdgekilnError, ExitCode, ResourceError, UsageError
from edgekiln.runtime.serving.loading import load

RED = Image.new("RGB", (8, 4), (100, 0, 0))
fuzz = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pack(path, members, method=zipfile.ZIP_STORED, **changes):
    """A zip of these members; ``changes`` are attributes of every entry."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            for key, value in changes.items():
                setattr(entry, key, value)
            archive.writestr(entry, data)
    return path


def pack_raw(path, name, packed, size, crc, method=8):
    """A zip of one member that says of itself whatever it is told to."""
    name = name.encode()
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, method, 0, 33, crc, len(packed), size, len(name), 0)
    central = struct.pack(
        "<4s6H3L5H2L",
        b"PK\1\2",
        20,
        20,
        0,
        method,
        0,
        33,
        crc,
        len(packed),
        size,
        len(name),
        0,
        0,
        0,
        0,
        0,
        0,
    )
    body, directory = local + name + packed, central + name
    path.write_bytes(
        body + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), len(body), 0)
    )
    return path


def patched(path, signature, offset, form, *values):
    """The archive with one field of its first record with that signature changed."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, raw.index(signature) + offset, *values)
    path.write_bytes(raw)
    return path


@pytest.fixture
def zipped(bundle_folder, tmp_path):
    path = tmp_path / "bundle.zip"
    write_zip(open_bundle(bundle_folder), path)
    return path


@pytest.fixture
def members(bundle_folder):
    return sorted(contents(bundle_folder).items())


@pytest.fixture
def refused(tmp_path):
    def check(path, message):
        before = sorted(tmp_path.rglob("*"))
        for door in (open_bundle, load):
            with pytest.raises(BundleError, match=message) as caught:
                door(path)
            assert caught.value.exit_code == ExitCode.UNTRUSTED == 4
            assert str(path) in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before

    return check


# What is taken


def test_an_archive_is_the_same_bundle(bundle_folder, zipped):
    folder, archive = open_bundle(bundle_folder), open_bundle(zipped)
    assert archive.path == zipped
    assert (archive.digest, archive.files, archive.variants) == (folder.digest, folder.files, folder.variants)
    assert dict(archive.members()) == dict(folder.members()) == contents(bundle_folder)
    with load(zipped) as ours, load(bundle_folder) as theirs:
        assert ours.variant == theirs.variant
        assert (ours.predict(RED).logits == theirs.predict(RED).logits).all()


def test_nothing_is_written_when_an_archive_is_loaded(zipped, tmp_path):
    shutil.rmtree(tmp_path / "bundle")
    tmp_path.chmod(0o500)
    before = sorted(tmp_path.rglob("*"))
    try:
        with load(zipped) as classifier:
            classifier.predict(RED)
    finally:
        tmp_path.chmod(0o700)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_bytes_that_were_hashed_are_loaded_whatever_becomes_of_the_file(zipped, bundle_folder):
    bundle = open_bundle(zipped)
    zipped.write_bytes(b"other")
    assert bundle.read("int8.onnx") == (bundle_folder / "int8.onnx").read_bytes()
    with pytest.raises(BundleError, match="is not listed in the manifest"):
        bundle.read("other")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_other_tools_archives_are_taken(bundle_folder, members, tmp_path, method):
    flat = pack(tmp_path / "flat.zip", members, method)
    below = pack(tmp_path / "below.zip", [("b/", b""), *((f"b/{n}", d) for n, d in members)], method)
    made = shutil.make_archive(str(tmp_path / "made"), "zip", bundle_folder.parent, bundle_folder.name)
    streamed = tmp_path / "streamed.zip"
    pipe = io.BytesIO()
    pipe.seekable = lambda: False  # sizes then follow the data
    pack(pipe, members, method)
    streamed.write_bytes(pipe.getvalue())
    for path in (flat, below, made, streamed):
        assert open_bundle(path).digest == open_bundle(bundle_folder).digest


def test_an_archive_may_be_reached_by_a_link(zipped, tmp_path):
    (tmp_path / "latest.zip").symlink_to(zipped)
    assert open_bundle(tmp_path / "latest.zip").digest == open_bundle(zipped).digest


# Writing


def test_the_same_bundle_gives_the_same_bytes(bundle_folder, zipped, tmp_path):
    moved = shutil.copytree(bundle_folder, tmp_path / "moved")
    for path in moved.iterdir():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    write_zip(open_bundle(moved), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == zipped.read_bytes()
    write_zip(open_bundle(zipped), zipped)
    assert (tmp_path / "again.zip").read_bytes() == zipped.read_bytes()


def test_members_are_stored_in_order_and_a_signature_goes_along(bundle_folder, tmp_path):
    (bundle_folder / SIGNATURE_NAME).write_bytes(b"signature")
    write_zip(open_bundle(bundle_folder), tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [MANIFEST_NAME, SIGNATURE_NAME, "fp32.onnx", "int8.onnx", "report.json"]
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read(SIGNATURE_NAME) == b"signature"


def test_a_file_that_changes_while_it_is_archived_leaves_nothing(bundle_folder, tmp_path):
    bundle = open_bundle(bundle_folder)
    (bundle_folder / "report.json").write_text("{ }")
    with pytest.raises(BundleError, match=r"report\.json was changed"):
        write_zip(bundle, tmp_path / "b.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_archive_is_not_written_into_the_bundle_or_nowhere(bundle_folder, tmp_path):
    bundle = open_bundle(bundle_folder)
    (tmp_path / "round.zip").symlink_to(tmp_path / "round.zip")
    for path, message in (
        (bundle_folder / "b.zip", "it would lie in the bundle itself"),
        (tmp_path / "none" / "b.zip", "There is no folder"),
        (tmp_path, "it is a folder"),
        (tmp_path / "round.zip", "is no path to write to"),
        (tmp_path / ("x" * 300), "is no path to write to"),
    ):
        with pytest.raises(UsageError, match=message):
            write_zip(bundle, path)
    write_zip(bundle, tmp_path / ("x" * 250))  # its temporary name would be too long
    open_bundle(bundle_folder)


def test_what_would_not_be_read_is_not_written(bundle_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(UsageError, match="is too large for an archive"):
        write_zip(open_bundle(bundle_folder), tmp_path / "b.zip")


# What is refused


def test_no_file_and_no_bundle_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="There is no file"):
        open_bundle(tmp_path / "none.zip")
    with pytest.raises(UsageError, match=r"is no bundle: it has no manifest\.json"):
        open_bundle(pack(tmp_path / "b.zip", [("a", b"")]))
    with pytest.raises(UsageError, match=r"is no bundle: it has no manifest\.json"):
        open_bundle(pack(tmp_path / "empty.zip", []))


@pytest.mark.parametrize("raw", [b"", b"PK", b"PK\3\4" * 20, b"x" * 100])
def test_what_is_no_zip_is_refused(tmp_path, refused, raw):
    (tmp_path / "b.zip").write_bytes(raw)
    refused(tmp_path / "b.zip", "it is no zip|does not end with the end of a zip")


def test_a_pipe_is_refused_without_waiting(tmp_path, refused):
    os.mkfifo(tmp_path / "b.zip")
    refused(tmp_path / "b.zip", "not a regular file")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/x",
        "a/../x",
        "a\\b",
        "..\\x",
        "C:x",
        "C:/x",
        "x" * 65,
        "ä",
        ".hidden",
        "a/b/c",
        "a b",
        "-x",
        "//",
    ],
)
def test_unsafe_names_are_refused(tmp_path, members, refused, name):
    refused(pack(tmp_path / "b.zip", [*members, (name, b"")]), "unsafe name")
    refused(pack(tmp_path / "c.zip", [(name, b""), *members]), "unsafe name")


@pytest.mark.parametrize("top", ["../", "/", "./", ".x/", "a/b/"])
def test_an_unsafe_common_folder_is_refused(tmp_path, members, refused, top):
    refused(pack(tmp_path / "b.zip", [(top + name, data) for name, data in members]), "unsafe name")


def test_two_common_folders_are_refused(tmp_path, members, refused):
    path = pack(tmp_path / "b.zip", [*((f"a/{n}", d) for n, d in members), ("b/x", b"")])
    refused(path, "unsafe name 'b/x'")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_the_same_name_are_refused(tmp_path, members, refused):
    refused(pack(tmp_path / "b.zip", [*members, members[0]]), "two members have the same name")


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR]
)
@pytest.mark.parametrize("system", [0, 3, 19])
def test_links_and_devices_are_refused(tmp_path, members, refused, kind, system):
    path = pack(tmp_path / "b.zip", members, external_attr=(kind | 0o644) << 16, create_system=system)
    refused(path, "is a link, a device or another thing")


def test_a_file_that_says_it_is_a_folder_is_refused(tmp_path, members, refused):
    refused(pack(tmp_path / "b.zip", members, external_attr=0x10), "says that it is a folder")


def test_a_folder_with_content_is_refused(tmp_path, members, refused):
    path = pack(tmp_path / "b.zip", [("b/", b"hidden"), *((f"b/{n}", d) for n, d in members)])
    refused(path, "has content")


@pytest.mark.parametrize("flag", [1 << 0, 1 << 6, 1 << 13])
def test_encrypted_members_are_refused(zipped, refused, flag):
    refused(patched(zipped, b"PK\1\2", 8, "<H", flag), "is encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(tmp_path, members, refused, method):
    refused(pack(tmp_path / "b.zip", members, method), "neither stored nor deflated")


def test_too_many_members_are_refused(tmp_path, refused):
    path = pack(tmp_path / "b.zip", [(f"f{i}", b"") for i in range(MAX_MEMBERS + 1)])
    refused(path, f"it has {MAX_MEMBERS + 1} members, at most {MAX_MEMBERS}")


def test_a_count_that_is_no_count_is_refused(zipped, refused):
    refused(patched(zipped, b"PK\5\6", 8, "<HH", 2, 2), "another length than it says")


def test_a_part_of_several_is_refused(zipped, refused):
    refused(patched(zipped, b"PK\5\6", 4, "<H", 1), "one part of several")


@pytest.mark.parametrize(
    ("cap", "message"), [("MAX_MEMBER_BYTES", "at most 20"), ("MAX_TOTAL_BYTES", "together")]
)
def test_too_large_members_are_refused_unread(zipped, refused, monkeypatch, cap, message):
    monkeypatch.setattr(archive_module, cap, 20 if cap == "MAX_MEMBER_BYTES" else 1000)
    monkeypatch.setattr(
        archive_module, "_read_member", None
    )  # nothing is unpacked before the caps are checked
    refused(zipped, message)


def test_a_bomb_is_refused_unread(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(archive_module, "_read_member", None)
    path = pack(tmp_path / "b.zip", [("zeros", bytes(4 * 2**20))], zipfile.ZIP_DEFLATED)
    refused(path, f"unpacks to over {MAX_RATIO} times its size")


def test_a_bomb_that_lies_about_its_size_is_unpacked_no_further(tmp_path, refused):
    packed = zlib.compress(bytes(64 * 2**20), wbits=-15)
    path = pack_raw(tmp_path / "b.zip", "zeros", packed, 1000, zlib.crc32(bytes(1000)))
    refused(path, "does not unpack to what it promised")


@pytest.mark.parametrize("size", [0, 9, 11])
def test_wrong_sizes_are_refused(tmp_path, refused, size):
    packed = zlib.compress(b"0123456789", wbits=-15)
    path = pack_raw(tmp_path / "b.zip", "data", packed, size, zlib.crc32(b"0123456789"[:size]))
    refused(path, "does not unpack to what it promised")


def test_bytes_behind_deflated_data_are_refused(tmp_path, refused):
    packed = zlib.compress(b"data", wbits=-15) + b"more"
    refused(pack_raw(tmp_path / "b.zip", "data", packed, 4, zlib.crc32(b"data")), "does not unpack to what")


def test_damaged_deflated_data_is_refused(tmp_path, refused):
    refused(pack_raw(tmp_path / "b.zip", "data", b"\xff" * 9, 9, 0), "'data' is damaged: Error")


def test_a_wrong_checksum_is_refused(tmp_path, refused):
    refused(pack_raw(tmp_path / "b.zip", "data", b"data", 4, 1, method=0), "does not unpack to what")


def test_a_header_that_differs_from_the_directory_is_refused(zipped, tmp_path, refused):
    name = zipped.read_bytes().replace(b"manifest.json", b"manifest.jsoN", 1)
    (tmp_path / "name.zip").write_bytes(name)
    refused(tmp_path / "name.zip", "is told otherwise in its own header")
    size = patched(shutil.copy(zipped, tmp_path / "size.zip"), b"PK\3\4", 22, "<L", 1)
    refused(size, "other sizes in its own header")


@pytest.mark.parametrize("place", ["before", "between", "directory", "behind"])
def test_bytes_that_belong_to_nothing_are_refused(zipped, tmp_path, refused, place):
    raw = zipped.read_bytes()
    at = {
        "before": 0,
        "between": raw.index(b"PK\3\4", 9),
        "directory": raw.index(b"PK\1\2"),
        "behind": len(raw),
    }[place]
    (tmp_path / "b.zip").write_bytes(raw[:at] + b"hidden" + raw[at:])
    refused(tmp_path / "b.zip", "is not taken as a bundle")


def test_overlapping_members_are_refused(tmp_path, members, refused):
    """One body told twice, as the bombs of David Fifield (2019) do."""
    path = pack(tmp_path / "b.zip", [("a", b"same"), ("b", b"same")])
    raw = bytearray(path.read_bytes())
    second = raw.index(b"PK\1\2", raw.index(b"PK\1\2") + 4)
    struct.pack_into("<L", raw, second + 42, 0)
    path.write_bytes(raw)
    refused(path, "overlaps another member")


@pytest.mark.parametrize("offset", [20, 24, 42])
def test_zip64_fields_are_refused(zipped, refused, offset):
    refused(patched(zipped, b"PK\1\2", offset, "<L", 0xFFFFFFFF), "zip64 is not taken")


@pytest.mark.parametrize(("offset", "form"), [(8, "<H"), (10, "<H"), (12, "<L"), (16, "<L")])
def test_a_zip64_end_is_refused(zipped, refused, offset, form):
    refused(
        patched(zipped, b"PK\5\6", offset, form, 0xFFFFFFFF >> (16 if form == "<H" else 0)),
        "zip64 is not taken",
    )


def test_a_comment_is_refused(zipped, refused):
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.comment = b"PK"
    refused(zipped, "comments are not taken")


def test_a_changed_member_with_a_right_checksum_is_refused_by_the_manifest(tmp_path, members, refused):
    changed = [(name, data + b" " if name == "report.json" else data) for name, data in members]
    refused(pack(tmp_path / "b.zip", changed), r"report\.json was changed")
    refused(pack(tmp_path / "c.zip", [*members, ("more", b"")]), "is not listed in the manifest")
    refused(pack(tmp_path / "d.zip", members[1:]), "is missing from")


# Mutations


def read_all(path):
    """Every file of the bundle, or the typed error that it ended with."""
    try:
        return dict(open_bundle(path).members())
    except EdgekilnError as error:
        return error


@fuzz
@given(data=st.data())
def test_a_mutated_archive_is_the_same_bundle_or_refused(zipped, data):
    original = zipped.read_bytes()
    raw = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        # The ends of the file are where its structure is.
        tail = st.integers(max(0, len(raw) - 400), len(raw) - 1)
        place = data.draw(st.one_of(st.integers(0, len(raw) - 1), tail))
        match data.draw(st.sampled_from(["byte", "extreme", "cut", "insert", "drop", "repeat"])):
            case "byte":
                raw[place] ^= data.draw(st.integers(1, 255))
            case "extreme":
                raw[place : place + 4] = data.draw(
                    st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\0\0"])
                )
            case "cut":
                del raw[max(1, place) :]
            case "insert":
                raw[place:place] = data.draw(st.binary(min_size=1, max_size=40))
            case "drop":
                del raw[max(1, place) : place + data.draw(st.integers(1, 60))]
            case "repeat":
                raw += raw[place:]
    path = zipped.with_name("mutated.zip")
    path.write_bytes(raw)
    found = read_all(path)
    if isinstance(found, EdgekilnError):
        assert found.exit_code in {ExitCode.USAGE, ExitCode.UNTRUSTED}
        assert str(path) in str(found)
    else:
        assert found == read_all(zipped)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("pass"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Paths of everything in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def put(value, path, new):
    if not path:
        return new
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


@fuzz
@given(data=st.data())
def test_a_mutated_manifest_opens_or_is_refused(bundle_folder, data):
    original = (bundle_folder / MANIFEST_NAME).read_bytes()
    document = json.loads(original)
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(places(document))))
        document = put(document, place, data.draw(JSON))
    (bundle_folder / MANIFEST_NAME).write_text(json.dumps(document))
    found = read_all(bundle_folder)
    if isinstance(found, EdgekilnError):
        assert found.exit_code == ExitCode.UNTRUSTED
    else:
        assert found == contents(bundle_folder)
    (bundle_folder / MANIFEST_NAME).write_bytes(original)


def test_the_reader_agrees_with_pythons(zipped):
    source = read_zip(zipped)
    with zipfile.ZipFile(zipped) as archive:
        assert source.names() == set(archive.namelist())
        for name in archive.namelist():
            assert b"".join(source.read(name, 2**20)) == archive.read(name)
            assert len(b"".join(source.read(name, 3))) == min(4, len(archive.read(name)))


def test_an_archive_that_may_not_be_read_is_no_mark_against_it(bundle_folder, tmp_path, monkeypatch):
    write_zip(open_bundle(bundle_folder), tmp_path / "b.zip")

    def fail(*arguments, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ResourceError, match=r"Too many open files.*ulimit -n"):
        read_zip(tmp_path / "b.zip")
