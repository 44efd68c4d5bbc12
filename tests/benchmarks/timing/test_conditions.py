import numpy as np
import pytest

from edgekiln.benchmarks.timing.conditions import judge_conditions, keep_sound_turns
from edgekiln.benchmarks.timing.measurement import Block, Measurement


def session(**changes):
    machine = dict.fromkeys(("cpu", "cores", "thread_settings", "cpu_quota_cores", "gpus", "versions"))
    machine["governor"] = changes.pop("governor", "performance")
    return {"foreign_load": 0.0, "steal": 0.0, "machine": machine, **changes}


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"foreign_load": 1.2}, "other processes kept 1.2 cores busy"),
        ({"steal": 0.3}, "the hypervisor took 30%"),
        ({"governor": "powersave"}, "went on under another governor"),
    ],
)
def test_worst_stretch_of_work_is_judged(second, text):
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    assert judge_conditions([steady], [session(), session()], {}, [ROUND]).state == "valid"
    for order in ([session(), session(**second)], [session(**second), session()]):
        found = judge_conditions([steady], order, {}, [ROUND])
        assert found.state == "noisy"
        assert text in found.reasons[0]


ROUND = {"cpu_mhz": 3000.0, "gpu_state": [{"throttled_by": ["idle"]}]}


@pytest.mark.parametrize(
    ("slow", "text"),
    [
        ({"cpu_mhz": 2400.0}, "the CPU's clock went from 3000 down to 2400 MHz between rounds"),
        ({"gpu_state": [{"throttled_by": ["idle", "software power cap"]}]},
         "the GPU was throttled by software power cap"),
    ],
)  # fmt: skip
def test_a_machine_that_slows_down_while_timing_is_noisy(slow, text):
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    found = judge_conditions([steady], [session()], {}, [ROUND, {**ROUND, **slow}])
    assert (found.state, found.reasons) == ("noisy", (text,))
    unknown = {"cpu_mhz": None, "gpu_state": [{"throttled_by": None}]}
    assert judge_conditions([steady], [session()], {}, [unknown, unknown]).state == "valid"


def test_a_gpu_that_heat_slowed_down_makes_the_run_invalid():
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    hot = {**ROUND, "gpu_state": [{"throttled_by": ["hardware thermal slowdown", "software power cap"]}]}
    found = judge_conditions([steady], [session()], {}, [ROUND, hot])
    assert (found.state, found.reasons) == (
        "invalid",
        ("the GPU was throttled by hardware thermal slowdown",),
    )


def test_times_of_an_emulated_processor_are_invalid():
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    steady = Measurement("a", "call", 1, {}, [], blocks)
    emulated = session()
    emulated["machine"]["emulated_on"] = "x86_64"
    found = judge_conditions([steady], [emulated], {}, [ROUND])
    assert (found.state, found.reasons) == (
        "invalid",
        ("the processor is emulated on x86_64: times are the emulator's",),
    )


def test_turns_that_throttled_are_told_also_where_their_rest_is_sound():
    raw = [{"index": i, "turn": 0, "times_ns": [10**6]} for i in range(5)]
    spoiled = [{**raw[0], "throttled": ["cpufreq-cpu0"]}, *raw[1:]]
    part = {**ROUND, "blocks": [spoiled, spoiled]}
    assert [len(own) for own in keep_sound_turns(part)] == [4, 4]
    blocks = [Block(p, i, t, np.full(10, 1.0)) for p in range(2) for i in range(4) for t in (0, 1)]
    found = judge_conditions([Measurement("a", "call", 1, {}, [], blocks)], [session()], {}, [part])
    assert found.state == "noisy"
    assert found.reasons == ("1 turn was timed while the machine throttled (cpufreq-cpu0) and left out",)
