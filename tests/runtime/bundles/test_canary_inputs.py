"""The pictures of canaries: the same bytes wherever they are made."""

import json

import numpy as np
import pytest
from tests_support import ROOT

from edgekiln.runtime.bundles.canary_inputs import CANARIES, CANARY_RECIPE, digest_frames, make_canaries

PINNED = json.loads((ROOT / "tests" / "data" / "canary_inputs.json").read_text())
"""sha256 of each picture by size. They may change only together with CANARY_RECIPE: bundles hold them."""


@pytest.mark.parametrize("size", sorted(PINNED))
def test_each_picture_has_the_bytes_that_bundles_recorded(size):
    assert CANARY_RECIPE == 1
    height, width = map(int, size.split("x"))
    frames = make_canaries(height, width)
    assert (frames.shape, frames.dtype) == ((16, height, width, 3), np.uint8)
    assert list(digest_frames(frames)) == PINNED[size]


def test_single_ones_are_those_of_all():
    frames = make_canaries(40, 52)
    np.testing.assert_array_equal(make_canaries(40, 52, [5, 0, 15]), frames[[5, 0, 15]])


def test_noise_is_the_hash_that_it_says_in_whole_numbers_of_python():
    def lowbias32(value):
        value ^= value >> 16
        value = value * 0x7FEB352D % 2**32
        value ^= value >> 15
        value = value * 0x846CA68B % 2**32
        return value ^ value >> 16

    noise = make_canaries(9, 13, [2])[0]
    expected = [lowbias32((place + 4 * 0x9E3779B9) % 2**32) >> 8 & 255 for place in range(9 * 13 * 3)]
    assert noise.ravel().tolist() == expected


def test_pictures_of_a_usual_size_differ_and_use_the_whole_range():
    frames = make_canaries(224, 224)
    assert len(set(digest_frames(frames))) == len(CANARIES) == 16
    assert (frames.min(), frames.max()) == (0, 255)
