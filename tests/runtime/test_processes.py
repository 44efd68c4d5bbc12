"""What belongs to one process is not pickled; children import what this process would, never the working folder's."""

import copy
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekiln.benchmarks.costs.memory import measure_memory
from edgekiln.export.child import Child
from edgekiln.pipeline.doctor.child import ask_child
from edgekiln.pipeline.gpu_suite.isolation import run_isolated
from edgekiln.runtime import Batcher, load
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.errors import EnvironmentProblem, UsageError
from edgekiln.runtime.processes import child_environment, code_command, module_command

ROOT, ROOTS = Path(__file__).parents[2], ("runtime", "export", "benchmarks", "pipeline")
HOSTILE = ("random", "numpy", "json", "edgekiln", "subprocess", "logging", "runpy", "tempfile", "onnxruntime")
# What a process that was started as `python -m` or `python -c` does first: then its children get the working folder's
# modules, if anything does.
PARENT = """
import os, sys
here = [path for path in sys.path if os.path.realpath(path) == os.getcwd()]
sys.path[:] = [path for path in sys.path if path not in here]  # its own imports are not the point
import subprocess
from edgekiln.runtime.processes import child_environment, code_command, module_command
assert here
sys.path[:0] = here
names = "import random, numpy, json, logging, tempfile, edgekiln.runtime; print(random.__file__, numpy.__file__)"
for command in (code_command(names), module_command("json.tool", "--help")):
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    print(done.returncode, done.stderr, done.stdout.splitlines()[:1])
"""


@pytest.fixture
def hostile_folder(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(
            f"import os, sys\nopen({str(folder / 'executed')!r}, 'a').write({name + chr(10)!r})\nraise SystemExit(77)\n"
        )
    yield folder
    executed = folder / "executed"
    assert not executed.exists(), f"executed: {executed.read_text()}"


@pytest.mark.parametrize(("way", "empty_entry"), [("-c", False), ("-m", False), ("-c", True)])
def test_children_of_any_parent_do_not_import_from_the_working_folder(hostile_folder, way, empty_entry):
    (hostile_folder / "parent.py").write_text(PARENT)
    command = [sys.executable, way, PARENT if way == "-c" else "parent"]
    path = os.pathsep.join(path for path in sys.path if path)
    # An empty entry means the working folder, and comes of PYTHONPATH=$PYTHONPATH:MORE where it was not set.
    environment = {**os.environ, "PYTHONPATH": f"{path}:" if empty_entry else path}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        command, cwd=hostile_folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:2]
    assert first.startswith("0  ")
    assert str(hostile_folder) not in first
    assert second.startswith("0  ['usage:")


def test_a_child_imports_from_the_working_folder_where_pythonpath_names_it(tmp_path, monkeypatch):
    (tmp_path / "own_module.py").write_text("print('own')")
    monkeypatch.chdir(tmp_path)

    def run():
        done = subprocess.run(
            module_command("own_module"), env=child_environment(), capture_output=True, text=True, check=False
        )
        return done.stdout or done.stderr

    assert "No module named own_module" in run()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    assert run() == "own\n"


def test_a_child_keeps_the_order_of_the_import_path(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit(77)")  # beside a recipe, say
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    done = subprocess.run(
        code_command("import random, sys; print(sys.path[-1])"),
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in done.stdout


def test_every_kind_of_child_is_safe(hostile_folder, monkeypatch, tmp_path, mean_model, random_frames):
    monkeypatch.setattr("sys.path", ["", *sys.path])
    monkeypatch.chdir(hostile_folder)
    with Child("the library") as child:
        assert child.call(divmod, 7, 2) == (3, 1)
    assert ask_child("import", "random").values["version"]
    outcome = run_isolated("random:randint", {}, limit_s=60)
    assert "(random.py:" in outcome.reason  # Python's own, which wants other arguments
    frames, model = tmp_path / "frames.npy", tmp_path / "model.onnx"
    np.save(frames, random_frames(1))
    model.write_bytes(mean_model)
    arguments = {"paths": [str(model)], "backend": "onnxruntime-cpu", "threads": 1}
    assert measure_memory("edgekiln.benchmarks.timing.worker:open_engine", arguments, frames).peak_rss_mb > 1


def test_only_one_module_names_the_interpreter():
    """Whoever starts Python by himself would bring the working folder back. What is sent to a device stands alone."""
    starting = re.compile(
        r"sys\.executable|get_context\(|\bProcess\(|import multiprocessing|ProcessPoolExecutor"
    )
    sources = [p for root in ROOTS for p in (ROOT / root / "edgekiln").rglob("*.py")]
    found = {
        path.name: path.read_text("utf-8") for path in sources if starting.search(path.read_text("utf-8"))
    }
    assert set(found) == {"processes.py", "agent.py", "agent_machine.py"}
    assert re.findall(r"\[sys\.executable, (\S+)", found["agent.py"] + found["agent_machine.py"]) == ['"-I",']


def test_a_frozen_program_has_no_python_for_children(monkeypatch):
    monkeypatch.setattr("sys.frozen", True, raising=False)
    with pytest.raises(EnvironmentProblem, match="is a frozen program"):
        module_command("json.tool")


# --------------------------------------------------------------------------------------------------------------
# Pickling, and multiprocessing's spawn


def test_what_holds_an_engine_refuses_to_be_pickled_or_copied(bundle_folder):
    with load(bundle_folder) as classifier, Batcher(classifier) as batcher:
        for held in (classifier, classifier.session, batcher):
            for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(
                    UsageError,
                    match=rf"A {type(held).__name__} cannot be pickled or copied.*runtime\.load\(path\)",
                ):
                    attempt(held)


def test_an_opened_bundle_can_be_pickled(bundle_folder):
    bundle = open_bundle(bundle_folder)
    assert pickle.loads(pickle.dumps(bundle)) == bundle


SPAWNING = """
import multiprocessing, sys
import numpy as np
from edgekiln.runtime import load
from edgekiln.runtime.errors import UsageError

def prepare(path):
    global classifier
    classifier = load(path)

def predict(picture):
    return classifier.predict(picture).label

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pictures = [np.full((8, 8, 3), (255 * (i == 0), 255 * (i == 1), 255 * (i == 2)), np.uint8) for i in range(3)]
    with load(sys.argv[1]) as classifier:
        expected = [classifier.predict(picture).label for picture in pictures]
        try:
            context.Process(target=print, args=(classifier,)).start()
        except UsageError as error:
            print(error.hint)
    with context.Pool(2, prepare, (sys.argv[1],)) as pool:
        found = pool.map(predict, pictures)
    print(found == expected and len(set(found)) == 3)
"""


def test_spawned_processes_load_their_own(bundle_folder, tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(SPAWNING)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, script, bundle_folder], env=environment, capture_output=True, text=True, check=False
    )
    hint, same = done.stdout.splitlines()[-2:]
    assert "Give the child the path of the bundle" in hint, done.stderr
    assert same == "True"
