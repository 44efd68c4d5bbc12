"""How much fits, from files as the system writes them."""

import pytest

from edgekiln.pipeline.capacity import available_memory_bytes, describe_bytes, free_disk_bytes

MEMINFO = "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 8_192_000_000),
        ({"proc/meminfo": MEMINFO, "sys/fs/cgroup/memory.max": "max",
          "sys/fs/cgroup/memory.current": "5"}, 8_192_000_000),
        # Page cache that can be dropped is free.
        ({"proc/meminfo": MEMINFO, "sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "900",
          "sys/fs/cgroup/memory.stat": "anon 600\ninactive_file 200\nactive_file 50\n"}, 300),
        # The narrowest of the group and of those above it.
        ({"proc/self/cgroup": "0::/jobs/one\n",
          "sys/fs/cgroup/jobs/memory.max": "5000", "sys/fs/cgroup/jobs/memory.current": "4900",
          "sys/fs/cgroup/jobs/one/memory.max": "1000", "sys/fs/cgroup/jobs/one/memory.current": "400"}, 100),
        # Version 1, as Docker mounts it.
        ({"proc/self/cgroup": "9:cpu,cpuacct:/x\n4:memory:/docker/abc\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000", "sys/fs/cgroup/memory/memory.usage_in_bytes": "500",
          "sys/fs/cgroup/memory/memory.stat": "cache 9\ntotal_inactive_file 70\n"}, 1570),
        # Over its limit for a moment.
        ({"sys/fs/cgroup/memory.max": "1000", "sys/fs/cgroup/memory.current": "1100"}, 0),
    ],
)  # fmt: skip
def test_memory_is_the_least_of_all_limits(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory_bytes(tmp_path) == expected


def test_this_machine_tells():
    assert 0 < available_memory_bytes() < 2**50


def test_the_disk_tells(tmp_path):
    assert free_disk_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 kB"),
        (768, "0.768 kB"),
        (350_000_000, "350 MB"),
        (15_052_800_000, "15.1 GB"),
        (2 * 10**12, "2 TB"),
    ],
)
def test_bytes_in_words(count, text):
    assert describe_bytes(count) == text
