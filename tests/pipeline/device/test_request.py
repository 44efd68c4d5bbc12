from types import SimpleNamespace

import pytest

from edgekiln.benchmarks.report.table import describe_static_batches
from edgekiln.pipeline.device.request import _merge_settings, graph_facts


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


def test_what_static_models_answered_on_another_machine_is_not_told_of_this_one():
    rows = [{"batch": 8, "images": 30, "flips": 1, "max_difference": 0.1}]
    notices = [*describe_static_batches("int8", rows), "int8: another notice"]
    figures = {"static_batches": rows, "notices": notices, "sha256": {}}
    facts = graph_facts(SimpleNamespace(name="int8", figures=figures))
    assert facts == {"notices": ["int8: another notice"], "sha256": {}}
