"""A bundle as one ``.zip``, read into memory under caps. ``archive_writer.py`` writes one.

Read strictly, not by Python's ``zipfile``, which serves archives of any kind: here every byte of the file must belong
to exactly one member, its headers or the central directory, so that nothing overlaps, hides or is told twice. Nothing
is ever written to disk. Layout: APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16. Zip64 is not taken: within the
caps nothing needs it.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from edgekiln.runtime.bundles.source import MemorySource, explain_unreadable
from edgekiln.runtime.errors import BundleError, UsageError

__all__ = ["MAX_MEMBERS", "MAX_MEMBER_BYTES", "MAX_RATIO", "MAX_TOTAL_BYTES", "read_zip"]

MAX_MEMBERS = 512
MAX_MEMBER_BYTES = 2**30
MAX_TOTAL_BYTES = 2 * 2**30
MAX_RATIO = 100
"""Size over compressed size of a member. Networks hardly shrink; a report shrinks about fivefold."""
_FREE_RATIO_BYTES = 2**20  # a member below this size may have any ratio

_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13
_DESCRIPTOR = 1 << 3  # sizes follow the data; the central directory has them anyway
_KNOWN_FLAGS = 1 << 1 | 1 << 2 | _DESCRIPTOR | 1 << 11
_MAX_DESCRIPTOR_BYTES = 24
_ZIP64 = 0xFFFFFFFF
_DOS_VOLUME_OR_FOLDER = 0x18


@dataclass(frozen=True, slots=True)
class _Member:
    """An entry of the central directory."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    attributes: int
    offset: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith(b"/")


def read_zip(path: Path) -> MemorySource:
    """All members of an archive, in memory.

    The files lie at the top, or all in one folder, as ``zip -r bundle.zip bundle`` puts them.

    Raises:
        UsageError: there is no such file.
        BundleError: it is no zip, breaks a cap, or holds anything but plain files under plain names.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not be waited for
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.", hint="Check the path.", path=path) from error
    except OSError as error:
        raise explain_unreadable(path, error) from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "it is not a regular file")
        members, directory = _read_directory(file, status.st_size, path)
        _check_caps(members, path)
        names = _flat_names(members, path)
        contents = {}
        end = 0
        for member in sorted(members, key=lambda m: m.offset):
            end, data = _read_member(file, member, end, path)
            if not member.is_folder:
                contents[names[member.name]] = data
        if end != directory:
            _refuse(path, "bytes before its central directory belong to no member")
    return MemorySource(path, contents)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise BundleError(
        f"{path} is not taken as a bundle: {reason}.",
        hint="`edgekiln archive BUNDLE --out FILE.zip` makes one that is.",
        path=path,
    )


def _read_at(file: BinaryIO, offset: int, size: int, path: Path) -> bytes:
    try:
        file.seek(offset)
        data = file.read(size)
    except OSError as error:
        raise explain_unreadable(path, error) from error
    if len(data) != size:
        _refuse(path, "it ends too early")
    return data


def _read_directory(file: BinaryIO, length: int, path: Path) -> tuple[list[_Member], int]:
    """The central directory's entries, and where it begins."""
    if length > MAX_TOTAL_BYTES + 2**20:
        _refuse(path, f"it has over {MAX_TOTAL_BYTES} bytes")
    if length < _END.size:
        _refuse(path, "it is no zip")
    last = _read_at(file, length - _END.size, _END.size, path)
    signature, disk, start_disk, here, count, size, offset, comment = _END.unpack(last)
    if signature != b"PK\x05\x06" or comment:
        _refuse(path, "it does not end with the end of a zip (comments are not taken)")
    if _ZIP64 in {size, offset} or 0xFFFF in {here, count}:
        _refuse(path, "zip64 is not taken, and no bundle needs it")
    if disk or start_disk or here != count:
        _refuse(path, "it is one part of several")
    if count > MAX_MEMBERS:
        _refuse(path, f"it has {count} members, at most {MAX_MEMBERS} are taken")
    if offset + size + _END.size != length:
        _refuse(path, "its central directory does not lie where its end says")
    raw = _read_at(file, offset, size, path)
    return _parse_directory(raw, count, path), offset


def _parse_directory(raw: bytes, count: int, path: Path) -> list[_Member]:
    members, place = [], 0
    for _ in range(count):
        if place + _CENTRAL.size > len(raw):
            _refuse(path, "its central directory is cut off")
        values = _CENTRAL.unpack_from(raw, place)
        (flags, method), (crc, packed, size) = values[3:5], values[7:10]
        name_size, extra, comment, disk, _, attributes, offset = values[10:]
        if values[0] != b"PK\x01\x02" or disk:
            _refuse(path, "its central directory is damaged")
        place += _CENTRAL.size
        name = raw[place : place + name_size]
        place += name_size + extra + comment
        members.append(_Member(name, flags, method, crc, packed, size, attributes, offset))
    if place != len(raw):
        _refuse(path, "its central directory has another length than it says")
    return members


def _check_caps(members: list[_Member], path: Path) -> None:
    for member in members:
        _check_member(member, path)
    if sum(member.size for member in members) > MAX_TOTAL_BYTES:
        _refuse(path, f"its members have over {MAX_TOTAL_BYTES} bytes together")


def _check_member(member: _Member, path: Path) -> None:
    name = ascii(member.name.decode("latin-1"))
    if member.flags & _ENCRYPTED:
        _refuse(path, f"{name} is encrypted")
    if member.flags & ~_KNOWN_FLAGS or member.method not in _METHODS:
        _refuse(path, f"{name} is neither stored nor deflated")
    if _ZIP64 in {member.packed, member.size, member.offset}:
        _refuse(path, "zip64 is not taken, and no bundle needs it")
    kind = stat.S_IFMT(member.attributes >> 16)
    if kind not in ({0, stat.S_IFDIR} if member.is_folder else {0, stat.S_IFREG}):
        _refuse(path, f"{name} is a link, a device or another thing that is no plain file")
    if member.attributes & _DOS_VOLUME_OR_FOLDER and not member.is_folder:
        _refuse(path, f"{name} says that it is a folder")
    if member.is_folder and member.size:
        _refuse(path, f"the folder {name} has content")
    if member.size > MAX_MEMBER_BYTES:
        _refuse(path, f"{name} has {member.size} bytes, at most {MAX_MEMBER_BYTES} are taken")
    if member.size > max(_FREE_RATIO_BYTES, MAX_RATIO * member.packed):
        _refuse(path, f"{name} unpacks to over {MAX_RATIO} times its size")


def _flat_names(members: list[_Member], path: Path) -> dict[bytes, str]:
    """Each file's name without the one folder that may hold them all."""
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        _refuse(path, "two members have the same name")
    top, slash, _ = (names[0] if names else b"").partition(b"/")
    prefix = top + slash if slash else b""
    if prefix and not _NAME.fullmatch(top):
        _refuse(path, f"unsafe name {names[0].decode('latin-1')!a}")
    flat = {}
    for name in names:
        if name == prefix:
            continue
        if not name.startswith(prefix) or not _NAME.fullmatch(name.removeprefix(prefix)):
            # Also absolute paths, .., backslashes, drives, folders in folders and anything that is not ASCII.
            _refuse(path, f"unsafe name {name.decode('latin-1')!a}")
        flat[name] = name.removeprefix(prefix).decode("ascii")
    return flat


def _read_member(file: BinaryIO, member: _Member, end: int, path: Path) -> tuple[int, bytes]:
    """Where the member ends, and its bytes. ``end`` is where the one before it ended, a data descriptor included."""
    name = ascii(member.name.decode("latin-1"))
    if member.offset != end:
        _refuse(path, f"{name} overlaps another member, or bytes before it belong to none")
    header = _LOCAL.unpack(_read_at(file, end, _LOCAL.size, path))
    signature, _, flags, method, _, _, crc, packed, size, name_size, extra = header
    start = end + _LOCAL.size
    if (signature, flags, method) != (b"PK\x03\x04", member.flags, member.method) or (
        _read_at(file, start, name_size, path) != member.name
    ):
        _refuse(path, f"{name} is told otherwise in its own header")
    start += name_size + extra
    if not flags & _DESCRIPTOR and (crc, packed, size) != (member.crc, member.packed, member.size):
        _refuse(path, f"{name} has other sizes in its own header")
    raw = _read_at(file, start, member.packed, path)
    end = start + member.packed
    if flags & _DESCRIPTOR:
        end += _descriptor_size(file, end, member, path)
    return end, _unpack(raw, member, path)


def _descriptor_size(file: BinaryIO, place: int, member: _Member, path: Path) -> int:
    """Length of the data descriptor: with or without its signature, sizes of 4 or 8 bytes (APPNOTE 4.3.9)."""
    found = _read_at(
        file, place, _MAX_DESCRIPTOR_BYTES, path
    )  # the central directory follows: so much is there
    for signature in (b"PK\x07\x08", b""):
        for form in ("<3L", "<LQQ"):
            wanted = signature + struct.pack(form, member.crc, member.packed, member.size)
            if found.startswith(wanted):
                return len(wanted)
    _refuse(path, f"{member.name.decode('latin-1')!a} has other sizes behind its data")


def _unpack(raw: bytes, member: _Member, path: Path) -> bytes:
    name = ascii(member.name.decode("latin-1"))
    data = raw
    if member.method == zipfile.ZIP_DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(raw, member.size + 1)  # never more than it promised, and one byte
        except zlib.error as error:
            raise BundleError(f"{path}: {name} is damaged: {error}.", path=path) from error
        if not inflater.eof or inflater.unused_data:
            _refuse(path, f"{name} does not unpack to what it promised")
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        _refuse(path, f"{name} does not unpack to what it promised")
    return data
