"""What a run does where the disk is full, nothing can be written, there is no home, others work, or Ctrl-C comes."""

import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from kill_study import find_leftovers, find_partial, hash_results
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.runtime.bundles.bundle import open_bundle

MARK = "EDGEKILN_TEST_MARK"
SMALL_PICTURES = 24  # of each class: a run of some seconds

MOUNT = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0, os.strerror(ctypes.get_errno())  # CLONE_NEWNS: nobody else sees the mounts
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
"""
FULL_DISK = (
    MOUNT
    + """
assert libc.mount(b"tmpfs", {place!r}, b"tmpfs", 0, b"size={size}") == 0, os.strerror(ctypes.get_errno())
import shutil
if {seed!r}:
    shutil.copytree({seed!r}, os.path.join({place!r}.decode(), "tiny"), dirs_exist_ok=True)
import atexit
atexit.register(shutil.copytree, {place!r}.decode(), {keep!r})  # the mount goes with the process
"""
)
READ_ONLY = (
    MOUNT
    + """
assert libc.mount({place!r}, {place!r}, None, 0x1000, None) == 0  # MS_BIND
assert libc.mount(None, {place!r}, None, 0x1000 | 0x20 | 0x1, None) == 0  # MS_BIND | MS_REMOUNT | MS_RDONLY
"""
)
STRANGER = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS, over the change of user
os.setgroups([])
os.setgid(54321)
os.setuid(54321)  # no such user, so no home in the password file either
# CAP_DAC_READ_SEARCH alone: Python may lie where strangers cannot read, and writing is bound by permissions.
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
assert libc.capset(header, (ctypes.c_uint32 * 6)(4, 4, 0, 0, 0, 0)) == 0, os.strerror(ctypes.get_errno())
"""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts and other users need root")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures and a recipe."""
    folder = tmp_path_factory.mktemp("faults")
    write_pictures(folder / "pictures", per_class=SMALL_PICTURES)
    (folder / "tiny.toml").write_text(TINY_RECIPE)
    return folder


@pytest.fixture(scope="module")
def finished(place, launcher):
    """A finished run: RUNS."""
    runs = place / "finished"
    assert launcher.run("run", place / "tiny.toml", "--runs", runs, folder=place).code == 0
    return runs


def error_of(launched):
    return json.loads(launched.out.read_text())["error"]


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*"))


# -- no room


@needs_root
def test_a_disk_that_is_too_small_is_told_before_the_pictures_are_decoded(launcher, place, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    setup = FULL_DISK.format(place=os.fsencode(runs), size="200k", seed="", keep=str(tmp_path / "kept"))
    run = launcher.run(
        "run",
        place / "tiny.toml",
        "--set",
        "data.cache=disk",
        "--runs",
        runs,
        "--json",
        folder=tmp_path,
        setup=setup,
    )
    error = error_of(run)
    assert (run.code, error["code"]) == (6, "resources")
    assert "72 pictures as arrays: they need" in error["message"]
    assert "kB are free" in error["message"]
    assert error["path"].startswith(str(runs))
    assert "--runs" in error["hint"]


@needs_root
def test_a_disk_that_becomes_full_leaves_the_finished_bundle(launcher, place, finished, tmp_path):
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    runs.mkdir()
    size = size_of(finished) + 8 * 2**20  # the new bundle is larger
    setup = FULL_DISK.format(place=os.fsencode(runs), size=size, seed=str(finished / "tiny"), keep=str(kept))
    arguments = ("run", place / "tiny.toml", "--runs", runs, "--set", "gate.max_drop=0.3", "--json")
    run = launcher.run(*arguments, folder=tmp_path, setup=setup)
    error = error_of(run)
    assert (run.code, error["code"]) == (6, "resources"), error
    assert "No space is left for" in error["message"]
    assert "MB when it was last done" in error["message"]
    assert error["path"].startswith(str(runs))
    assert "finished stages are kept" in error["hint"]
    assert list(find_partial(kept / "tiny")) == []
    assert open_bundle(kept / "tiny" / "bundle").digest == open_bundle(finished / "tiny" / "bundle").digest


def test_a_limit_of_file_sizes_is_told_as_one(launcher, place, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))"
    arguments = ("run", place / "tiny.toml", "--runs", tmp_path / "runs", "--json")
    run = launcher.run(*arguments, folder=tmp_path, setup=limit)
    error = error_of(run)
    assert (run.code, error["code"]) == (6, "resources"), error
    assert "File too large" in error["message"]
    assert error["path"].startswith(str(tmp_path / "runs"))
    assert "ulimit -f" in error["hint"]
    assert list(find_partial(tmp_path / "runs" / "tiny")) == []


# -- no permission, no home


@needs_root
def test_a_folder_that_can_only_be_read_is_named(launcher, place, finished, tmp_path):
    before = hash_results(finished / "tiny")
    setup = READ_ONLY.format(place=os.fsencode(finished))
    run = launcher.run("run", place / "tiny.toml", "--runs", finished, "--json", folder=tmp_path, setup=setup)
    error = error_of(run)
    assert (run.code, error["code"]) == (6, "resources"), error
    assert "Read-only file system" in error["message"]
    assert error["path"] == str(finished / "tiny")
    assert "--runs" in error["hint"]
    assert hash_results(finished / "tiny") == before
    assert list(find_partial(finished / "tiny")) == []


@pytest.fixture
def stranger_place(place):
    """Readable for everybody, with a folder ``own`` that belongs to a user without a name or home."""
    folder = Path(tempfile.mkdtemp(prefix="edgekiln-stranger-"))
    folder.chmod(0o755)
    shutil.copytree(place / "pictures", folder / "pictures")
    shutil.copy(place / "tiny.toml", folder)
    (folder / "own").mkdir()
    os.chown(folder / "own", 54321, 54321)
    yield folder
    shutil.rmtree(folder)


NOWHERE = {"HOME": None, "XDG_CACHE_HOME": None, "EDGEKILN_CACHE": None, "MPLCONFIGDIR": None}


def modes(folder):
    """Permissions of all that lies in a folder but its locks: (files, folders)."""
    paths = [path for path in folder.rglob("*") if path.name != ".lock"]
    assert len(paths) > 20
    return tuple(
        {oct(p.stat().st_mode & 0o777) for p in paths if p.is_dir() == is_dir} for is_dir in (False, True)
    )


@needs_root
def test_a_user_without_home_can_run_and_is_told_where_not_to_write(
    launcher, stranger_place, tmp_path, finished
):
    options = {"folder": tmp_path, "environment": NOWHERE, "setup": STRANGER + "os.umask(0o027)\n"}
    recipe, own = stranger_place / "tiny.toml", stranger_place / "own"
    run = launcher.run("run", recipe, "--runs", own / "runs", **options)
    assert run.code == 0, run.log.read_text()
    assert modes(own / "runs") == ({"0o640"}, {"0o750"})
    run = launcher.run(
        "predict", own / "runs/tiny/bundle", *(stranger_place / "pictures").glob("*/00[01].png"), **options
    )
    assert run.code == 0, run.log.read_text()
    run = launcher.run("run", recipe, "--runs", stranger_place / "runs", "--json", **options)
    error = error_of(run)
    assert (run.code, error["code"]) == (6, "resources")
    assert "Permission denied" in error["message"]
    assert error["path"] == str(stranger_place / "runs" / "tiny")
    assert "--runs" in error["hint"]
    run = launcher.run("cache", "ls", "--json", **options)
    error = error_of(run)
    assert (run.code, error["code"]) == (5, "environment")
    assert "no home directory" in error["message"]
    assert "EDGEKILN_CACHE" in error["hint"]
    run = launcher.run("run", recipe, "--set", "data.path=~/pictures", "--json", **options)
    error = error_of(run)
    assert (run.code, error["code"]) == (2, "recipe")
    assert "'~/pictures' begins in a home folder, and there is none" in error["message"]
    assert "HOME" in error["hint"]


def test_all_files_of_a_run_are_readable_as_the_umask_says(finished):
    umask = os.umask(0o022)
    os.umask(umask)
    assert modes(finished) == ({oct(0o666 & ~umask)}, {oct(0o777 & ~umask)})


# -- others at work


def test_of_eight_processes_one_works_and_seven_wait_and_reuse(launcher, place, tmp_path):
    arguments = ("train", place / "tiny.toml", "--runs", tmp_path / "runs", "--json")
    runs = [launcher.start(*arguments, folder=tmp_path, name=f"run{i}") for i in range(8)]
    assert [run.wait() for run in runs] == [0] * 8
    stages = [json.loads(run.out.read_text())["stages"] for run in runs]
    for name in ("data", "finetune"):
        assert sorted(stage[name]["cached"] for stage in stages) == [False] + [True] * 7
    waited = [run for run in runs if "waiting for another run" in run.log.read_text()]
    assert len(waited) >= 1  # those that came while it worked; the others found it done
    assert len({json.dumps(stage["finetune"]["folder"]) for stage in stages}) == 1


def test_a_killed_holder_is_replaced_within_five_seconds(launcher, place, tmp_path):
    arguments = ("train", place / "tiny.toml", "--runs", tmp_path / "runs", "--set", "finetune.epochs=200")
    first = launcher.start(*arguments, folder=tmp_path, name="first")
    assert first.wait_for("finetune ...")
    second = launcher.start(*arguments, folder=tmp_path, name="second")
    assert second.wait_for("waiting for another run")
    killed = time.monotonic()
    first.send(signal.SIGKILL)
    assert second.wait_for("[1/2] data")
    assert time.monotonic() - killed < 5
    second.send(signal.SIGINT)
    assert second.wait() == 130


# -- Ctrl-C


def marked(mark):
    """Processes that were started with the mark in their environment, and live."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            alive = (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and f"{MARK}={mark}".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes())
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.slow
def test_ctrl_c_in_every_stage_ends_with_130_and_leaves_nobody(launcher, place, finished, tmp_path):
    """One run, interrupted in each of its stages; then it goes on to the end and is as any other."""
    root = tmp_path / "runs" / "tiny"
    stages = [
        "data",
        "finetune",
        "export",
        "variant.fp32",
        "variant.int8",
        "evaluate.baseline",
        "evaluate.int8",
        "bundle",
    ]
    slow_at = {}
    for stage in stages:
        run = launcher.start(
            "run",
            place / "tiny.toml",
            "--runs",
            tmp_path / "runs",
            folder=tmp_path,
            environment={MARK: str(tmp_path)},
        )
        assert run.wait_for(f"] {stage} ..."), f"{stage} was not begun: {run.log.read_text()}"
        interrupted = time.monotonic()
        run.send(signal.SIGINT)
        code = run.wait()
        slow_at[stage] = time.monotonic() - interrupted
        assert code == 130, (stage, code, run.log.read_text())
        assert "Interrupted. Run the same command again to go on." in run.log.read_text()
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)
        assert marked(tmp_path) == []
        with (root / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert list(find_partial(root)) == []
    assert max(slow_at.values()) < 5, slow_at
    run = launcher.run("run", place / "tiny.toml", "--runs", tmp_path / "runs", folder=tmp_path)
    assert run.code == 0, run.log.read_text()
    assert hash_results(root) == hash_results(finished / "tiny")
    assert find_leftovers(root) == []
