import os

import pytest

from edgekiln.benchmarks.endurance.process_status import read_descriptors, read_rss_mb
from edgekiln.runtime.errors import EnvironmentProblem


def test_memory_is_read_from_proc(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmRSS:\t  1000 kB\n")
    assert read_rss_mb(status) == 1.024
    with pytest.raises(EnvironmentProblem, match="no VmRSS"):
        read_rss_mb(tmp_path / "none")


def test_a_file_that_is_open_for_a_moment_is_no_leak(monkeypatch):
    counts = iter([["0", "1", "7"], ["0", "1"], ["0", "1", "7", "8"]])
    monkeypatch.setattr(os, "listdir", lambda path: next(counts))
    assert read_descriptors(looks=3, pause_s=0) == 2
