from edgekiln.benchmarks.report import timings

BASELINE = "baseline"


def test_speed_ups_between_two_devices_name_both():
    measured = [{"name": BASELINE, "device": "cuda:0"}, {"name": "int8", "device": "cpu"}]
    found = timings._device_notices({"measurements": [*measured, {"name": "gpu", "device": "cuda:0"}]})
    assert found == ["Speed-ups are to PyTorch on cuda:0; int8 ran on cpu."]
    assert timings._device_notices({"measurements": measured[:1]}) == timings._device_notices(None) == []


def test_peer_that_was_not_timed_is_a_notice():
    absent = {"name": "openvino", "reason": "it is not installed. Run: pip install 'edgekiln[openvino]'"}
    assert timings._absence_notices({"absent_peers": [absent]}) == [
        "openvino was asked for and not timed: it is not installed. Run: pip install 'edgekiln[openvino]'."
    ]


def test_every_kind_of_notice_is_told_and_none_without_a_benchmark():
    measured = [{"name": BASELINE, "device": "cuda:0"}, {"name": "int8", "device": "cpu"}]
    absent = [{"name": "openvino", "reason": "it is not installed."}]
    found = timings.timing_notices({"measurements": measured, "absent_peers": absent, "images": 12})
    assert [notice.split()[0] for notice in found] == ["openvino", "Only", "Speed-ups"]
    assert timings.timing_notices(None) == []
