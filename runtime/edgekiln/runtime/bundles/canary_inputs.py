"""The pictures that canaries are asked for: made by a rule and taken from nobody, the same bytes on every machine.

Integers alone make them, of widths that are written down: neither the machine's byte order, nor its rounding, nor
numpy's version or its generators have a say. Knows no engine and no bundle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgekiln.runtime.spec import Frames

__all__ = ["CANARIES", "CANARY_RECIPE", "digest_frames", "make_canaries"]

CANARY_RECIPE = 1
"""Version of the rule. Another picture is another rule: a record names the version that it was made with."""

_Plane = NDArray[np.int32]


def make_canaries(height: int, width: int, indices: Sequence[int] | None = None) -> Frames:
    """uint8 (N, height, width, 3): all 16 pictures, or those of ``indices``, counted from 0, in their order.

    The first four hold what networks react to most (soft spots, hard edges, noise, gradients): ``load`` asks these.
    """
    chosen = range(len(CANARIES)) if indices is None else indices
    frames = np.empty((len(chosen), height, width, 3), np.uint8)
    for frame, index in zip(frames, chosen, strict=True):
        frame[:] = CANARIES[index][1](height, width)
    return frames


def digest_frames(frames: Frames) -> tuple[str, ...]:
    """The sha256 of each picture's bytes, rows first, as hex."""
    return tuple(hashlib.sha256(frame.tobytes()).hexdigest() for frame in frames)


def _noise(height: int, width: int, seed: int, lowest: int = 0, span: int = 256) -> _Plane:
    """int32 (height, width, 3), evenly from ``lowest`` to ``lowest + span - 1``, with ``span`` a power of two.

    Each value is a hash of its place (the constants are those of "lowbias32" by C. Wellons), in 32 bits that wrap.
    """
    places = np.arange(height * width * 3, dtype=np.uint32)
    places += np.uint32(seed * 0x9E3779B9 % 2**32)
    places ^= places >> np.uint32(16)
    places *= np.uint32(0x7FEB352D)
    places ^= places >> np.uint32(15)
    places *= np.uint32(0x846CA68B)
    places ^= places >> np.uint32(16)
    values = (places >> np.uint32(8)) & np.uint32(span - 1)
    return values.astype(np.int32).reshape(height, width, 3) + np.int32(lowest)


def _blocks(height: int, width: int, seed: int, cell: int) -> _Plane:
    """Squares of ``cell`` pixels, each of a colour of its own."""
    coarse = _noise(-(-height // cell), -(-width // cell), seed)
    return coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]


def _spots(height: int, width: int, seed: int, cell: int) -> _Plane:
    """Soft spots: colours every ``cell`` pixels, and straight lines between them."""
    corners = _noise(height // cell + 2, width // cell + 2, seed)
    return _stretch(_stretch(corners, height, cell).transpose(1, 0, 2), width, cell).transpose(1, 0, 2)


def _stretch(corners: _Plane, length: int, cell: int) -> _Plane:
    """Values between rows of ``corners``, by their distance to both, rounded down."""
    place = np.arange(length, dtype=np.int32)
    first, share = place // cell, (place % cell)[:, np.newaxis, np.newaxis]
    return (corners[first] * (cell - share) + corners[first + 1] * share) // np.int32(cell)


def _places(height: int, width: int) -> tuple[_Plane, _Plane]:
    """Row and column of each pixel, int32 (height, 1, 1) and (1, width, 1)."""
    rows = np.arange(height, dtype=np.int32).reshape(height, 1, 1)
    return rows, np.arange(width, dtype=np.int32).reshape(1, width, 1)


def _gradients(height: int, width: int) -> _Plane:
    """Red grows to the right, green downwards, blue to both."""
    rows, columns = _places(height, width)
    down = rows * np.int32(255) // np.int32(max(height - 1, 1)) + np.int32(0) * columns
    right = columns * np.int32(255) // np.int32(max(width - 1, 1)) + np.int32(0) * rows
    return np.concatenate([right, down, (right + down) // np.int32(2)], axis=2)


def _flat(level: int) -> Callable[[int, int], _Plane]:
    return lambda height, width: np.full((height, width, 3), level, np.int32)


def _board(height: int, width: int, cell: int, channels: Sequence[int]) -> _Plane:
    """A checkerboard between 0 and 255, shifted by so many cells in each channel."""
    rows, columns = _places(height, width)
    shift = np.array(channels, np.int32)
    board: _Plane = (rows // cell + columns // cell + shift) % np.int32(2) * np.int32(255)
    return board


def _step(height: int, width: int) -> _Plane:
    """Left half black, right half white, and every eighth row the other way round."""
    rows, columns = _places(height, width)
    right = (columns >= width // 2) ^ (rows % np.int32(8) == 7)
    step: _Plane = right.astype(np.int32) * np.int32(255) + np.zeros(3, np.int32)
    return step


def _rings(height: int, width: int) -> _Plane:
    """Rings around the middle that grow finer outwards, out of step in each channel."""
    rows, columns = _places(height, width)
    squared = (rows - height // 2) ** 2 + (columns - width // 2) ** 2
    rings: _Plane = (squared // np.int32(4) + np.array([0, 85, 170], np.int32)) % np.int32(256)
    return rings


def _stripes(height: int, width: int) -> _Plane:
    """Columns of pure red, green and blue, twelve pixels wide."""
    rows, columns = _places(height, width)
    own = columns // np.int32(12) % np.int32(3) == np.arange(3, dtype=np.int32)
    stripes: _Plane = own.astype(np.int32) * np.int32(255) + np.int32(0) * rows
    return stripes


CANARIES: tuple[tuple[str, Callable[[int, int], _Plane]], ...] = (
    ("soft spots with noise", lambda h, w: (_spots(h, w, 1, 32) * 7 + _noise(h, w, 2)) // np.int32(8)),
    ("blocks", lambda h, w: _blocks(h, w, 3, 16)),
    ("noise", lambda h, w: _noise(h, w, 4)),
    ("gradients", _gradients),
    ("black", _flat(0)),
    ("white", _flat(255)),
    ("grey", _flat(127)),
    ("fine checkerboard", lambda h, w: _board(h, w, 1, (0, 0, 0))),
    ("coloured checkerboard", lambda h, w: _board(h, w, 16, (0, 1, 0))),
    ("step with lines", _step),
    ("rings", _rings),
    ("stripes", _stripes),
    ("pale soft spots", lambda h, w: _spots(h, w, 5, 24) // np.int32(4) + np.int32(96)),
    ("dark noise", lambda h, w: _noise(h, w, 6, 0, 32)),
    ("bright noise", lambda h, w: _noise(h, w, 7, 224, 32)),
    ("large soft spots", lambda h, w: _spots(h, w, 8, 64)),
)
"""By their place: what each shows, and what makes it from a height and a width."""
