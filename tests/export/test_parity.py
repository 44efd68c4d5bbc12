import numpy as np
import pytest

from edgekiln.export.parity import check_parity
from edgekiln.runtime.errors import ExitCode, ParityError

REFERENCE = np.array([[5.0, 0.0], [0.0, 5.0], [1.0, 1.001]], np.float32)
KEYS = ["a.jpg", "b.jpg", "c.jpg"]


def test_equal_logits_pass():
    parity = check_parity(REFERENCE, REFERENCE.copy(), KEYS, 1e-3)
    assert (parity.images, parity.max_difference, parity.logit_range) == (3, 0.0, 5.0)


def test_too_large_a_difference_names_the_worst_image():
    wrong = REFERENCE.copy()
    wrong[1, 0] += 0.1
    with pytest.raises(
        ParityError, match=r"differs from PyTorch by 1\.00e-01.*Worst image: b\.jpg"
    ) as caught:
        check_parity(REFERENCE, wrong, KEYS, 1e-3)
    assert caught.value.exit_code == ExitCode.GATE_FAILED


def test_two_logits_within_the_tolerance_may_swap():
    swapped = REFERENCE.copy()
    swapped[2] = swapped[2, ::-1]
    assert check_parity(REFERENCE, swapped, KEYS, 1e-3).max_difference == pytest.approx(0.001, rel=1e-3)


def test_nan_is_the_worst_difference_of_all():
    broken = REFERENCE.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ParityError, match=r"a\.jpg"):
        check_parity(REFERENCE, broken, KEYS, 1e-3)
