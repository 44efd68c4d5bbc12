from edgekiln.pipeline.device.derived_bundle import _carry
from edgekiln.runtime.bundles.judged_with import JUDGED_ON


def test_what_is_carried_a_second_time_keeps_the_machine_that_judged_it():
    first = _carry({"name": "fp32", "figures": {"drop": 0}}, {"cpu": "one"})
    assert first == {"name": "fp32", "figures": {"drop": 0, JUDGED_ON: {"cpu": "one"}}}
    assert _carry(first, {"cpu": "another"}) == first
