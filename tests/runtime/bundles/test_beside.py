"""Places beside a final name: whose leftovers are removed, and whose are not."""

import os
import threading

import pytest

from edgekiln.runtime.bundles.archive import read_zip
from edgekiln.runtime.bundles.archive_writer import write_zip
from edgekiln.runtime.bundles.beside import ABANDONED_AFTER_S, place_beside, remove
from edgekiln.runtime.bundles.bundle import open_bundle


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
def test_what_a_killed_process_left_long_ago_is_removed(tmp_path, folder):
    left = leave(tmp_path / ".b.zip.0123abcd.edgekiln-partial", folder=folder)
    place = place_beside(tmp_path / "b.zip")
    assert place.parent == tmp_path
    assert not left.exists()


def test_no_two_places_are_the_same(tmp_path):
    assert len({place_beside(tmp_path / "b") for _ in range(50)}) == 50


def test_what_may_still_be_written_or_is_somebody_elses_stays(tmp_path):
    kept = [
        leave(tmp_path / ".b.0123abcd.edgekiln-partial", age_s=ABANDONED_AFTER_S - 60),
        leave(tmp_path / ".other.0123abcd.edgekiln-partial"),
        leave(tmp_path / ".b.0123abcd.edgekiln-partial.bak"),
        leave(tmp_path / ".b-20240101", folder=True),
        leave(tmp_path / ".b.0123abcd"),
        leave(tmp_path / "b"),
    ]
    place_beside(tmp_path / "b")
    assert all(path.exists() for path in kept)


def test_a_link_is_removed_and_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    link = tmp_path / ".b.0123abcd.edgekiln-partial"
    link.symlink_to(tmp_path / "precious")
    os.utime(link, (0, 0), follow_symlinks=False)
    place_beside(tmp_path / "b")
    assert not link.is_symlink()
    assert (tmp_path / "precious").is_dir()


def test_a_folder_that_does_not_exist_is_the_writers_matter(tmp_path):
    assert place_beside(tmp_path / "none" / "b").parent == tmp_path / "none"
    remove(tmp_path / "none" / "b")


def test_of_many_writers_of_one_name_none_disturbs_another(bundle_folder, tmp_path):
    bundle, path = open_bundle(bundle_folder), tmp_path / "b.zip"
    write_zip(bundle, path)
    whole, failures = path.read_bytes(), []

    def write():
        try:
            for _ in range(10):
                write_zip(bundle, path)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() == whole
    for thread in threads:
        thread.join()
    assert failures == []
    assert read_zip(path).names() == bundle.source.names()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["x" * 255, "\N{SNOWMAN}" * 85])
def test_a_name_of_any_length_has_a_place(tmp_path, name):
    left = place_beside(tmp_path / name)
    leave(left)
    place_beside(tmp_path / name)
    assert not left.exists()
