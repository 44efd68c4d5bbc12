import numpy as np
import pytest

from edgekiln.export.calibration import choose_calibration
from edgekiln.runtime.errors import DataError


def frames(count):
    return np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), np.uint8)


def test_choice_is_deterministic_without_repetition_and_recorded():
    train = frames(100)
    first, second, other = (choose_calibration(train, 40, seed) for seed in (1, 1, 2))
    assert first.digest == second.digest != other.digest
    assert len(set(first.indices)) == 40
    assert (first.frames == train[first.indices]).all()


def test_fewer_pictures_than_wanted_are_all_taken():
    assert len(choose_calibration(frames(50), 512, 0).frames) == 50


@pytest.mark.parametrize("count", [0, 1, 31])
def test_too_few_are_refused_with_the_remedy(count):
    with pytest.raises(DataError, match=f"has {count} images, wanted at least 32. Add training pictures"):
        choose_calibration(frames(count), 512, 0)


def test_constant_pictures_are_refused():
    train = frames(40)
    train[:5] = 77
    train[:5, 0, 0, 0] = 77
    with pytest.raises(DataError, match="5 of 40 calibration images are of one single color"):
        choose_calibration(train, 40, 0)


def test_repeated_pictures_are_refused():
    train = frames(40)
    train[1:8] = train[0]
    with pytest.raises(DataError, match="7 of 40 calibration images are repetitions of others"):
        choose_calibration(train, 40, 0)
