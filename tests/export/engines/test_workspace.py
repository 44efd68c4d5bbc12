import pytest

from edgekiln.export.engines.workspace import available_memory, limit_workspace

MIB = 2**20
MEMORY_INFO = "MemTotal: 7802000 kB\nMemFree: 300000 kB\nMemAvailable: 5000000 kB\nCached: 4500000 kB\n"


@pytest.fixture
def memory_info(tmp_path):
    def write(text):
        (tmp_path / "meminfo").write_text(text)
        return tmp_path / "meminfo"

    return write


def test_page_cache_counts_as_available_where_the_gpu_shares_the_hosts_memory(memory_info):
    assert (
        available_memory(300 * MIB, integrated=True, memory_info=memory_info(MEMORY_INFO)) == 5000000 * 1024
    )
    assert available_memory(300 * MIB, integrated=False, memory_info=memory_info(MEMORY_INFO)) == 300 * MIB
    # The driver may know of more, such as memory that is set aside for the GPU.
    assert available_memory(6 << 30, integrated=True, memory_info=memory_info(MEMORY_INFO)) == 6 << 30


@pytest.mark.parametrize("text", ["", "MemAvailable:", "MemAvailable: many kB", "MemFree: 3 kB"])
def test_where_the_system_does_not_tell_the_drivers_word_stands(memory_info, tmp_path, text):
    assert available_memory(7, integrated=True, memory_info=memory_info(text)) == 7
    assert available_memory(7, integrated=True, memory_info=tmp_path / "nowhere") == 7


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
