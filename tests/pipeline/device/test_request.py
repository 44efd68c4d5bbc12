import pytest

from edgekiln.pipeline.device.request import _merge_settings


@pytest.mark.parametrize(
    ("flavour", "kept"),
    [("tensorrt", {"tf32": True, "typing": "weak"}), ("tensorrt-rtx", {"tf32": True, "capabilities": [86]})],
)
def test_settings_that_the_other_flavour_alone_knows_are_left_out(flavour, kept):
    settings = {"tf32": True, "typing": "weak", "capabilities": [86]}
    assert _merge_settings(flavour, settings, {}) == kept


def test_the_callers_settings_stand_over_the_recipes_and_a_range_over_static_sizes():
    recipe = {"static_batches": [1, 8], "tf32": True}
    assert _merge_settings("tensorrt", recipe, {"tf32": False}) == {"static_batches": [1, 8], "tf32": False}
    assert _merge_settings("tensorrt", recipe, {"batch": {"max": 4}}) == {"tf32": True, "batch": {"max": 4}}
