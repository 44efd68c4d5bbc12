"""A small /dev/shm, as containers have it: fewer loading workers, told; a typed error where it runs out anyway."""

import ctypes
import dataclasses
import errno
import multiprocessing
import os
import subprocess
import warnings

import pytest
from finetune_support import job

from edgekiln.pipeline.training import loss, shared_memory
from edgekiln.pipeline.training.finetune import finetune
from edgekiln.pipeline.training.shared_memory import explain_lost_worker, fit_workers
from edgekiln.runtime.errors import ExitCode

MB = 1_000_000


@pytest.mark.parametrize(
    ("free_mb", "batch_mb", "sharers", "wanted", "taken"),
    [
        (24_000, 10, 1, 8, 8),
        (64, 10, 1, 8, 1),  # 5 batches fit: 2 in use, and 2 ahead for each worker
        (64, 10, 2, 8, 0),
        (64, 20, 1, 8, 0),
        (64, 1, 1, 8, 8),
        (0, 1, 1, 4, 0),
        (0, 1, 1, 0, 0),
    ],
)
def test_workers_are_as_many_as_shared_memory_holds(
    monkeypatch, tmp_path, free_mb, batch_mb, sharers, wanted, taken
):
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shared_memory, "free_disk_bytes", lambda folder: free_mb * MB)
    told = []
    assert fit_workers(wanted, batch_mb * MB, sharers, told.append) == taken
    assert len(told) == (taken < wanted)
    for text in told:
        assert f"{tmp_path} has {free_mb} MB free" in text or free_mb == 0
        assert "docker run --shm-size" in text
        assert ("without workers" in text) == (taken == 0)


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)",
        "unable to write to file </torch_7_1_0>: No space left on device (28)",
    ],
)
def test_a_worker_without_shared_memory_is_a_matter_of_the_machine(text):
    error = explain_lost_worker(RuntimeError(text))
    assert error.exit_code == ExitCode.RESOURCES
    assert "/dev/shm" in error.message
    assert "--shm-size" in error.hint


def test_a_killed_worker_is_a_matter_of_memory_and_others_of_their_own():
    error = explain_lost_worker(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert error.exit_code == ExitCode.RESOURCES
    assert "memory runs out" in error.message
    assert explain_lost_worker(RuntimeError("shape mismatch")) is None


def test_semaphores_lie_in_shared_memory_too():
    error = explain_lost_worker(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert (error.exit_code, "/dev/shm" in error.message) == (ExitCode.RESOURCES, True)
    assert explain_lost_worker(OSError(errno.EIO, "read error")) is None


CLONE_NEWNS = 0x20000


def mount_shared_memory(size):
    """A mount namespace of this process's own, with a real, small tmpfs over /dev/shm."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise PermissionError(ctypes.get_errno(), "unshare")
    for options in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", "/dev/shm"]):
        done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(done.stderr.strip())


def train(folder, connection, fitted):
    """In a process of its own: torch refuses to train in a fork of one that trained, as other tests of a worker do."""
    try:
        # A batch of 64 has 49 kB: of the 10 that 4 workers want 6 fit, or 1.
        mount_shared_memory("320k" if fitted else "128k")
    except OSError as error:
        connection.send((f"NOT TESTED: nothing may be mounted here: {error}", [], None))
        return
    warnings.simplefilter("ignore")  # torch finds four workers too many for a machine of two cores
    if not fitted:
        loss.fit_workers = lambda wanted, *rest: wanted
    told, problem = [], None
    wanted = dataclasses.replace(job(workers=4, batch_size=64, epochs=3), tell=told.append)
    try:
        finetune(wanted, folder)
    except Exception as error:  # whatever it is, the test looks at it
        problem = error
    connection.send((None, told, problem))


@pytest.fixture
def outcome(tmp_path):
    def run(*, fitted):
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=train, args=(tmp_path, theirs, fitted))
        child.start()
        theirs.close()  # so that a child which dies is noticed
        try:
            assert ours.poll(240), "it hangs"
            impossible, told, problem = ours.recv()
        finally:
            child.kill()
            child.join()
        if impossible:
            pytest.skip(impossible)
        return told, problem, sorted(path.name for path in tmp_path.iterdir())

    return run


def test_training_goes_on_with_fewer_workers(outcome):
    [told], problem, files = outcome(fitted=True)
    assert "4 loading workers need up to 492 kB of shared memory, and /dev/shm has 328 kB free" in told
    assert "2 of them start" in told
    assert (problem, "checkpoint.safetensors" in files) == (None, True)


def test_what_runs_out_all_the_same_names_the_remedy(outcome):
    _, problem, files = outcome(fitted=False)
    assert getattr(problem, "exit_code", problem) == ExitCode.RESOURCES
    assert problem.message.startswith("A loading worker ran out of shared memory (/dev/shm, which has ")
    assert "docker run --shm-size=2g" in problem.hint
    assert "checkpoint.safetensors" not in files
