"""How often one address may ask, on a clock that the test moves."""

import pytest

from edgekiln.pipeline.shipping.server.rates import Rates
from edgekiln.pipeline.shipping.server.refusals import RequestError


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def is_let_in(rates, address):
    try:
        rates.check(address)
    except RequestError as error:
        return (error.status, error.reason) != (429, "rate")
    return True


def test_a_burst_passes_and_then_as_many_as_the_rate_allows():
    clock = Clock()
    rates = Rates(10, clock)
    assert [is_let_in(rates, "a") for _ in range(25)].count(True) == 20  # two seconds' worth
    assert is_let_in(rates, "b")  # each address for itself
    for _ in range(5):
        clock.now += 0.5
        assert [is_let_in(rates, "a") for _ in range(20)].count(True) == 5
    clock.now += 3600
    assert [is_let_in(rates, "a") for _ in range(50)].count(True) == 20  # nothing is saved up beyond a burst


@pytest.mark.parametrize("rate", [0.5, 1])
def test_a_rate_of_one_or_less_lets_single_requests_in(rate):
    clock = Clock()
    rates = Rates(rate, clock)
    assert is_let_in(rates, "a")
    clock.now += 2 / rate
    assert is_let_in(rates, "a")


def test_zero_lets_any_number_in():
    rates = Rates(0)
    assert all(is_let_in(rates, "a") for _ in range(10_000))


def test_what_is_kept_of_addresses_is_bounded_and_the_quietest_one_is_forgotten():
    rates = Rates(1, Clock())
    while is_let_in(rates, "busy"):
        pass
    for number in range(20_000):
        is_let_in(rates, f"address {number}")
        if number % 1000 == 0:
            assert not is_let_in(rates, "busy")
    assert len(rates._left) <= 4096
