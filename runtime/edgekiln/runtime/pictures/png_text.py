"""Takes what carries no pixels out of a PNG before a decoder sees it: texts and colour profiles of any size.

Pillow refuses a whole picture for a text that is long (``MAX_TEXT_CHUNK``), as programs that make pictures write their
settings into. What turns a picture upright stays: EXIF, also as an old text, and XMP.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["drop_texts"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DROPPED = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
_KEPT = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def drop_texts(data: bytes) -> bytes:
    """The same bytes without those chunks; the object itself where there is none, or where it is no PNG."""
    if not data.startswith(_SIGNATURE):
        return data
    parts, position = [], 0
    for start, end in _find_dropped(data):
        parts.append(data[position:start])
        position = end
    return b"".join([*parts, data[position:]]) if parts else data


def _find_dropped(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of each; a chunk that breaks off is left to the decoder, which tells so."""
    position = len(_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if kind in _DROPPED and end <= len(data) and not data.startswith(_KEPT, position + 8):
            yield position, end
        position = end
