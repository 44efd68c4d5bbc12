"""Families of networks that several files convert further: exported and quantized once."""

import pytest
from export_support import convert_family


@pytest.fixture(scope="session")
def converted(made_once):
    """``converted(name)``: the family of that name as ``export_support.Converted``. Read-only."""
    return lambda name: made_once(name, lambda folder: convert_family(name, folder))
