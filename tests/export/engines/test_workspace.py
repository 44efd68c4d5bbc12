import pytest

from edgekiln.export.engines.workspace import limit_workspace

MIB = 2**20


@pytest.mark.parametrize(
    ("wanted", "available", "limit", "warned"),
    [
        (None, 1000 * MIB, 800 * MIB, False),
        (4000 * MIB, 1000 * MIB, 800 * MIB, False),
        (100 * MIB, 1000 * MIB, 100 * MIB, False),
        (100 * MIB, 200 * MIB, 100 * MIB, False),  # it gets what was asked for
        (None, 600 * MIB, 480 * MIB, True),
        (1024 * MIB, 600 * MIB, 480 * MIB, True),
    ],
)
def test_workspace_is_clamped_to_what_is_there_and_little_is_told(wanted, available, limit, warned):
    found, note = limit_workspace(wanted, "tensorrt", lambda: available)
    assert (found, note is not None) == (limit, warned)
    assert note is None or "Only 480 MiB of memory are left" in note


@pytest.mark.parametrize("wanted", [None, 1])
def test_rtx_builds_without_a_gpu_and_asks_none(wanted):
    def refuse():
        raise AssertionError("the GPU was asked")

    assert limit_workspace(wanted, "tensorrt-rtx", refuse) == (wanted, None)
