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


def test_where_the_milliseconds_go_on_a_cpu_and_on_a_gpu():
    phases = {"host_ms": 0.1, "enqueue_ms": 0.01, "copy_in_ms": 0.2, "device_ms": 0.5, "copy_out_ms": None}
    benchmark = {
        "measurements": [
            {"name": BASELINE, "p50_ms": 4.0},
            {"name": "int8", "p50_ms": 1.25, "phases": None},
            {"name": "trt", "p50_ms": 0.9, "phases": phases},
        ],
        "sides": [
            {"name": "int8", "boundary": "engine", "p50_ms": 1.0},
            {"name": "int8", "boundary": "image", "p50_ms": 3.25},
        ],
    }
    assert timings.phase_rows(benchmark) == [
        ["int8", "2.000", "0.250", "-", "-", "1.000", "-", "1.250"],
        ["trt", "-", "0.100", "0.010", "0.200", "0.500", "-", "0.900"],
    ]
    assert timings.describe_phases({"benchmark": benchmark})[1] == (
        "trt: host 0.100, enqueue 0.010, copy in 0.200, engine 0.500, whole call 0.900 ms"
    )
    assert timings.phase_rows(None) == []
    invalid = {**benchmark, "validity": {"state": "invalid"}}  # differences of two medians say nothing there
    assert [name for name, *_ in timings.phase_rows(invalid)] == ["trt"]
