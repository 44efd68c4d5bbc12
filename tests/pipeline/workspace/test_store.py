import json
import subprocess
import sys
import time

import pytest

from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.store import StageStore, stage_key
from edgekiln.runtime.errors import ExitCode, ResourceError


def run_stage(store, key, content="x"):
    folder = store.begin("s", key, resume=False)
    (folder / "a.txt").write_text(content)
    return store.finish("s", key, 1.5, {"settings": {}})


def test_key_changes_with_every_part_and_not_with_their_order():
    base = stage_key("s", inputs={"a": "1", "b": "2"}, tools={"torch": "2"})
    assert base == stage_key("s", tools={"torch": "2"}, inputs={"b": "2", "a": "1"})
    assert base != stage_key("t", inputs={"a": "1", "b": "2"}, tools={"torch": "2"})
    assert base != stage_key("s", inputs={"a": "1", "b": "3"}, tools={"torch": "2"})
    assert base != stage_key("s", inputs={"a": "1", "b": "2"}, tools={"torch": "3"})


def test_finished_stage_is_found_by_key(tmp_path):
    store = StageStore(tmp_path)
    assert store.find("s", "k" * 64) is None
    made = run_stage(store, "k" * 64)
    found = store.find("s", "k" * 64)
    assert found is not None
    assert (found.digest, found.seconds, found.cached) == (made.digest, 1.5, True)
    assert (found.folder / "a.txt").read_text() == "x"
    assert store.find("s", "l" * 64) is None


def test_digest_is_that_of_the_files(tmp_path):
    first, second = StageStore(tmp_path / "1"), StageStore(tmp_path / "2")
    assert run_stage(first, "k" * 64).digest == run_stage(second, "q" * 64).digest
    assert run_stage(first, "m" * 64, "y").digest != run_stage(second, "n" * 64, "z").digest


def test_unfinished_stage_is_not_found_and_its_remains_are_swept(tmp_path):
    store = StageStore(tmp_path)
    folder = store.begin("s", "k" * 64, resume=False)
    (folder / "half.txt").write_text("half")
    assert store.find("s", "k" * 64) is None
    assert list(store.begin("s", "k" * 64, resume=True).iterdir()) == [folder / "half.txt"]
    assert list(store.begin("s", "k" * 64, resume=False).iterdir()) == []


def test_stage_whose_files_were_removed_runs_again(tmp_path):
    store = StageStore(tmp_path)
    (run_stage(store, "k" * 64).folder / "a.txt").unlink()
    assert store.find("s", "k" * 64) is None
    assert run_stage(store, "k" * 64).cached is False
    assert store.find("s", "k" * 64) is not None


def test_damaged_record_runs_again(tmp_path):
    store = StageStore(tmp_path)
    (run_stage(store, "k" * 64).folder.parent / "stage.json").write_text("{")
    assert store.find("s", "k" * 64) is None


def test_record_lists_files_by_sha256(tmp_path):
    record = run_stage(StageStore(tmp_path), "k" * 64)
    about = json.loads((record.folder.parent / "stage.json").read_text())
    assert (
        about["files"]["a.txt"]["sha256"]
        == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )


HOLDER = """
import sys, time
from pathlib import Path
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.store import StageStore
with StageStore(Path(sys.argv[1])).lock(SilentProgress()):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_process_waits_and_a_killed_holder_frees_the_lock(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said = []

    class Listening(SilentProgress):
        def message(self, text):
            said.append(text)
            holder.kill()

    started = time.monotonic()
    with StageStore(tmp_path).lock(Listening()):
        pass
    assert time.monotonic() - started < 30  # not the 60 s for which it would have held it
    assert said == [f"waiting for another run in {tmp_path}"]
    holder.wait()
    holder.stdout.close()


def test_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    store = StageStore(tmp_path / "file" / "runs")
    with (
        pytest.raises(ResourceError, match=r"cannot be written.*--runs") as caught,
        store.lock(SilentProgress()),
    ):
        pass
    assert caught.value.exit_code == ExitCode.RESOURCES
