import numpy as np
import pytest

from edgekiln.benchmarks.timing.inputs import choose_images


@pytest.mark.parametrize(("total", "wanted"), [(297, 64), (64, 64), (10, 64), (1, 2)])
def test_images_are_spread_over_the_whole_split(total, wanted):
    chosen = choose_images(total, wanted)
    assert len(set(chosen)) == len(chosen) == min(total, wanted)
    assert (chosen[0], chosen[-1]) == (0, total - 1)
    assert max(np.diff(chosen), default=0) <= np.ceil(total / wanted) + 1
