"""Errors keep what they say on their way out of a worker process."""

import pickle

import pytest

from edgekiln.runtime.errors import BuildError, BundleError, EdgekilnError, ImageError, NonFiniteError


@pytest.mark.parametrize(
    "error",
    [
        EdgekilnError("bare"),
        NonFiniteError("a", hint="b"),
        BundleError("a", hint="b", path="c"),
        ImageError("a", reason="corrupt", hint="b", path="c"),
        NonFiniteError("a", images=(1, 4)),
        BuildError("a", node="/conv", log=(("ERROR", "no kernel"),)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
