import pytest
from energy_support import Clock


@pytest.fixture
def clock():
    return Clock()
