"""SIGKILL: before every single file operation of the store, and in every stage of a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kill_study import KillStudy, find_leftovers, find_partial, hash_results
from tests_support import ROOT, TINY_RECIPE, write_pictures

# Two stages, one of which goes on from its partial folder, and the bundle; forced, so that each replaces an older one.
# A fork does it with an audit hook that kills it before its n-th change of the file system, for every n there is.
EVERY_OPERATION = r"""
import json, os, signal, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from kill_study import find_leftovers, find_partial
from edgekiln.pipeline import run
from edgekiln.pipeline.workspace import placing
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.stages.stage import Stage
from edgekiln.pipeline.workspace.store import StageStore
from edgekiln.runtime.bundles.manifest import write_manifest
from edgekiln.runtime.contract import Contract

root, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
if not exchange:
    placing._exchange = lambda one, other: False
STAGES = [Stage("early", (), {}, (), None), Stage("long", (), {}, (), None, resumable=True)]
KEY = "k" * 64
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "shutil.rmtree", "shutil.copyfile"}

def fill(folder, text):
    (folder / "a.txt").write_text(text)
    (folder / "b.txt").write_text(text * 1000)

def work(text):
    store = StageStore(root)
    with store.lock(SilentProgress()):
        run._sweep(store, root / "bundle", STAGES)
        for stage in STAGES:
            folder = store.begin(stage.name, KEY, resume=stage.resumable, forced=True)
            fill(folder, text)
            (folder / "later.part").write_text("half")
            store.finish(stage.name, KEY, 1.0, {})
        source = root / "stages" / "packed"
        source.mkdir(exist_ok=True)
        fill(source, text)
        write_manifest(source, {"name": "n", "contract": Contract(height=8, width=8, classes=("a", "b")).to_dict(),
                                "variants": []})
        run._publish(source, root / "bundle")

def places():
    return [root / "stages" / "early" / KEY[:16], root / "stages" / "long" / KEY[:16], root / "bundle"]

def die_before(number):
    left = [number]
    def hook(event, arguments):
        changes = event in CHANGES or (event == "open" and isinstance(arguments[2], int)
                                       and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def text_of(place):
    return (place / ("a.txt" if place.name == "bundle" else "out/a.txt")).read_text()

work("x")
number, absent = 0, 0
while True:
    number += 1
    text = f"{number} "
    pid = os.fork()
    if not pid:
        die_before(number)
        work(text)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    assert not (found := [p for p in find_partial(root) if "packed" not in p]), (number, found)
    for place in places():
        absent += not place.exists()
        assert not place.exists() or text_of(place) in {last if number > 1 else "x", text}, (number, place)
    work(text)
    assert [text_of(place) for place in places()] == [text] * 3, number
    assert not (found := find_leftovers(root)), (number, found)
    last = text
print(json.dumps({"kills": number - 1, "absent": absent}))
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_before_any_file_operation_leaves_the_old_or_the_new(tmp_path, way):
    done = subprocess.run(
        [sys.executable, "-c", EVERY_OPERATION, str(tmp_path), way, str(ROOT / "tests")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] > 40
    if way == "exchange":
        assert told["absent"] == 0  # what was good is never away, not even for a moment
    else:
        assert 0 < told["absent"] < 8  # between two renames; the next run puts it back


@pytest.fixture(scope="module")
def study(launcher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    write_pictures(folder / "pictures", per_class=24)
    (folder / "tiny.toml").write_text(
        TINY_RECIPE.replace("threads = 1", "threads = 1\ncheckpoint_seconds = 0.1")
    )

    def start():
        return launcher.start("run", folder / "tiny.toml", "--runs", folder / "runs", folder=folder)

    study = KillStudy(start, folder / "runs" / "tiny", seed=7)
    study.run_undisturbed()
    return study


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_as_one_that_nobody_disturbed(study):
    study.run_chain()
    result = study.result
    assert result.problems == []
    assert result.finished == 1
    # A stage of milliseconds may end before each of its kills comes.
    assert len(set(study.seconds) - set(result.hits)) <= 2
    assert {"data", "finetune", "export", "variant.int8"} <= set(result.hits)


def test_what_the_study_calls_whole_is_whole(tiny_run, tmp_path):
    """A check that finds nothing where something is wrong would prove nothing."""
    import shutil

    root = tmp_path / "tiny"
    shutil.copytree(tiny_run[1] / "tiny", root)
    assert list(find_partial(root)) == []
    assert find_leftovers(root) == []
    results = hash_results(root)
    assert {"finetune/checkpoint.safetensors", "variant.int8/model.onnx", "evaluate.int8/logits.npz"} <= set(
        results
    )
    [model] = root.glob("stages/variant.int8/*/out/model.onnx")
    with model.open("r+b") as file:
        file.seek(1000)
        file.write(b"spoiled")
    [log] = root.glob("stages/finetune/*/out/*.safetensors")
    log.unlink()
    (root / "bundle" / "fp32.onnx").write_bytes(b"half")
    (root / "stages" / "export" / ".partial-0123456789abcdef").mkdir()
    problems = list(find_partial(root))
    assert len(problems) == 3
    assert any("variant.int8" in p for p in problems)
    assert any("finetune" in p for p in problems)
    assert any("bundle is not whole" in p for p in problems)
    assert find_leftovers(root) == [str(Path("stages/export/.partial-0123456789abcdef"))]
    assert hash_results(root) != results
