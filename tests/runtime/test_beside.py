"""Places beside a final name: whose leftovers are removed, and whose are not."""

import os
import subprocess
import sys

import pytest

from edgekiln.runtime.beside import ABANDONED_AFTER_S, place_beside


@pytest.fixture
def ended_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(path, *, age_s=ABANDONED_AFTER_S + 60, folder=False):
    if folder:
        path.mkdir()
        (path / "half").touch()
    else:
        path.write_text("half")
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize("folder", [False, True])
def test_what_a_killed_process_left_long_ago_is_removed(tmp_path, ended_pid, folder):
    left = leave(tmp_path / f".b.zip-{ended_pid}", folder=folder)
    assert place_beside(tmp_path / "b.zip") == tmp_path / f".b.zip-{os.getpid()}"
    assert not left.exists()


def test_what_is_in_the_way_is_removed(tmp_path):
    left = leave(tmp_path / f".b-{os.getpid()}", age_s=0, folder=True)
    assert place_beside(tmp_path / "b") == left
    assert not left.exists()


def test_what_may_still_be_written_or_is_somebody_elses_stays(tmp_path, ended_pid):
    kept = [
        leave(tmp_path / f".b-{ended_pid}", age_s=ABANDONED_AFTER_S - 60),  # by another machine, perhaps
        leave(tmp_path / f".b-{os.getppid()}"),  # by a process that lives
        leave(tmp_path / f".other-{ended_pid}"),
        leave(tmp_path / f".b-{ended_pid}x"),
        leave(tmp_path / f"b-{ended_pid}"),
        leave(tmp_path / "b"),
    ]
    place_beside(tmp_path / "b")
    assert all(path.exists() for path in kept)


def test_a_link_is_removed_and_not_followed(tmp_path, ended_pid):
    (tmp_path / "precious").mkdir()
    link = tmp_path / f".b-{ended_pid}"
    link.symlink_to(tmp_path / "precious")
    os.utime(link, (0, 0), follow_symlinks=False)
    place_beside(tmp_path / "b")
    assert not link.is_symlink()
    assert (tmp_path / "precious").is_dir()


def test_a_folder_that_does_not_exist_is_the_writers_matter(tmp_path):
    assert place_beside(tmp_path / "none" / "b").parent == tmp_path / "none"
