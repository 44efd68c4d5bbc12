import pytest

from edgekiln.benchmarks.costs.energy.meters import CounterMeter, PowerMeter
from edgekiln.benchmarks.costs.energy.per_image import EnergyPerImage, measure_energy
from edgekiln.runtime.errors import EngineError, UsageError


def test_idle_power_is_taken_off(clock):
    """5 W idle and 9 W busy; an image takes 10 ms: 40 mJ of it are the engine's."""
    watts = {False: 5.0, True: 9.0}
    joules, busy = 0.0, False

    def pass_by(seconds):
        nonlocal joules
        joules += watts[busy] * seconds
        clock.pass_by(seconds)

    def run():
        nonlocal busy
        busy = True
        pass_by(0.01)
        busy = False

    meter = CounterMeter([(lambda: joules, None)], "made up")
    found = measure_energy(run, 2.0, meter, clock=clock, sleep=pass_by)
    assert found.joules_per_image == pytest.approx(0.04)
    assert found.idle_watts == pytest.approx(5)
    assert found.busy_watts == pytest.approx(9)
    assert found.images in {200, 201}  # the clock's sums of 0.01 are not exact
    assert found.samples == 1
    assert found.source == "made up"


def test_error_is_that_of_both_powers_in_opposite_ways():
    found = EnergyPerImage(0.04, 5.0, 9.0, images=200, seconds=2.0, samples=40, source="made up")
    assert found.error_joules == pytest.approx(0.05 * (9 + 5) * 2 / 200)
    values = found.to_dict()
    assert (values["mj_per_image"], values["error_mj"]) == (pytest.approx(40), pytest.approx(7))


def test_threads_may_settle_before_idle_power_is_read(clock):
    """8 W for a second after the last call, while threads still spin; 5 W from then on."""
    joules, busy_until = 0.0, 0.0

    def pass_by(seconds):
        nonlocal joules
        spun = max(0.0, min(seconds, busy_until - clock.now))
        joules += 8 * spun + 5 * (seconds - spun)
        clock.pass_by(seconds)

    def run():
        nonlocal busy_until
        busy_until = clock.now + 1.1
        pass_by(0.1)

    meter = CounterMeter([(lambda: joules, None)], "made up")
    assert measure_energy(run, 2.0, meter, clock=clock, sleep=pass_by).idle_watts == pytest.approx(6.5)
    settled = measure_energy(run, 2.0, meter, settle_seconds=1.0, clock=clock, sleep=pass_by)
    assert settled.idle_watts == pytest.approx(5)


def test_a_call_of_several_images_is_shared_out(clock):
    meter = CounterMeter([(lambda: 8 * clock.now, None)], "made up")
    found = measure_energy(
        lambda: clock.pass_by(0.25), 1.0, meter, images_per_call=4, clock=clock, sleep=clock.pass_by
    )
    assert found.images == 16
    assert found.joules_per_image == pytest.approx(0)


def test_a_moment_is_refused(clock):
    with pytest.raises(UsageError, match=r"over 0\.1 s means nothing"):
        measure_energy(lambda: None, 0.1, CounterMeter([], "none"), clock=clock)


@pytest.mark.parametrize(("dies", "span"), [("idle", "idle"), ("busy", "busy")])
def test_a_source_that_dies_gives_no_figure(clock, dies, span):
    """tegrastats, whose readings are pushed: no more of them come from some point on."""
    meter = PowerMeter(None, "tegrastats VDD_IN", clock=clock)
    meter.add(5.0)

    def idle(seconds):
        clock.pass_by(seconds)
        if dies == "busy":
            meter.add(5.0)

    with pytest.raises(EngineError, match=f"tegrastats VDD_IN gave no reading in the {span} span"):
        measure_energy(lambda: clock.pass_by(0.01), 1.0, meter, clock=clock, sleep=idle)
