"""Sizes before the crop, and what resizing may cost. That pixels equal torchvision's is proven in test_image.py."""

import pytest

from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ImageError
from edgekiln.runtime.pictures.fitting import check_resizing, resized_size
from edgekiln.runtime.pictures.limits import MAX_MEMORY

SQUASH = Contract(height=6, width=9, classes=("a", "b"))
CROP = Contract(height=6, width=9, resize="shorter-side", shorter_side=12, classes=("a", "b"))


@pytest.mark.parametrize(
    ("contract", "size", "resized"),
    [
        (SQUASH, (100, 7), (9, 6)),
        (CROP, (24, 24), (12, 12)),
        (CROP, (10, 31), (12, 37)),  # 37.2, cut off
        (CROP, (31, 10), (37, 12)),
    ],
)
def test_the_size_before_the_crop_follows_the_rule(contract, size, resized):
    assert resized_size(size, contract) == resized


def test_what_would_need_too_much_memory_is_refused():
    check_resizing((1, 1), (1, MAX_MEMORY // 4 - 2))
    with pytest.raises(ImageError, match="too elongated or too large to resize") as caught:
        check_resizing((1, 1), (1, MAX_MEMORY // 4))
    assert caught.value.reason == "too_large"
