import time

import pytest

from edgekiln.benchmarks.costs.energy.meters import PowerMeter


def test_readings_become_energy_by_the_trapezoid_sum(clock):
    watts = iter([10.0, 20.0, 20.0, 0.0])
    meter = PowerMeter(lambda: next(watts), "made up", interval=None, clock=clock)
    for seconds, joules in ((2, 30.0), (1, 50.0), (0.5, 55.0)):
        clock.pass_by(seconds)
        assert meter.read_joules() == pytest.approx(joules)
    assert meter.samples == 4


def test_a_thread_takes_readings_until_the_meter_is_closed():
    meter = PowerMeter(lambda: 7.0, "made up", interval=0.005)
    while meter.samples < 5:
        time.sleep(0.001)
    meter.close()
    taken = meter.samples
    assert meter.read_joules() > 0
    assert meter.samples == taken + 1
    meter.close()
