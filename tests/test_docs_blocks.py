"""Every block of the documents runs as printed, in a folder that holds what a reader would have by then.

A page's blocks run one after the other in one folder. sh: line by line, edgekiln in this process. python: in one
namespace. toml: loaded as a recipe, what a fragment lacks is added. `make` and `pip` are looked up in the Makefile and
in pyproject. A block that is marked `<!-- not executed: REASON -->` is parsed: its commands, options and imports exist.
"""

import ast
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from documents import (
    DOCUMENTS,
    LANGUAGES,
    WHEEL,
    edgekiln_commands,
    fences,
    find_command,
    is_edgekiln,
    is_pending,
    name_of,
    options_of,
    shell_commands,
)
from PIL import Image
from tests_support import ROOT, TINY_RECIPE

from edgekiln.pipeline.cli import main
from edgekiln.pipeline.recipe import load_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EMBEDDING = "embedding.md"  # its blocks need a camera and servers of their own: tests/test_embedding_docs.py runs them
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)

SECTIONS = {  # what a fragment of a recipe may leave out
    "[data]": '[data]\nsource = "imagefolder"\npath = "photos"\n',
    "[backbone]": '[backbone]\nmodel = "edgekiln/tiny-cnn"\nweights = "none"\n',
    "[[variants]]": '[[variants]]\nname = "fp32"\nprecision = "fp32"\n',
}


# -- the reader's folder


@pytest.fixture(scope="session")
def prepared(tiny_run, tmp_path_factory):
    """What a reader has after the commands that take minutes: pictures, recipes, finished runs, a .venv."""
    recipe, runs, _ = tiny_run
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(recipe.parent / "pictures", folder / "photos")
    shutil.copytree(recipe.parent / "pictures", folder / "test-pictures")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for name in ("photos", "my-photos", "lights", "traffic-lights"):
        text = TINY_RECIPE.replace('"tiny"', f'"{name}"', 1).replace('"pictures"', '"photos"')
        (folder / f"{name}.toml").write_text(text)
        shutil.copytree(runs / "tiny", folder / "runs" / name, copy_function=_link)
        _edgekiln(["run", str(folder / f"{name}.toml"), "--runs", str(folder / "runs"), "-q"])
    shutil.copy(folder / "photos.toml", folder / "recipe.toml")
    for copy in ("bundle", "released/bundle"):
        shutil.copytree(folder / "runs/photos/bundle", folder / copy, copy_function=_link)
    picture = next((folder / "photos/red").iterdir())
    Image.open(picture).convert("RGB").save(folder / "photo.jpg")
    _write_venv(folder / ".venv")
    return folder


def _link(source, target):
    """Weights are linked, not copied: edgekiln never writes into a finished file."""
    if Path(source).stat().st_size > 2**20:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _write_venv(folder):
    """What `make setup` makes, as far as the documents use it."""
    library = Path(sysconfig.get_path("purelib"))
    link = folder / "lib" / library.parent.name / library.name
    link.parent.mkdir(parents=True)
    link.symlink_to(library, target_is_directory=True)
    (folder / "bin").mkdir()
    for name, call in {
        "python": f"'{sys.executable}'",
        "edgekiln": f"'{sys.executable}' -c 'from edgekiln.pipeline.cli import main; main()'",
    }.items():
        path = folder / "bin" / name
        path.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        path.chmod(0o755)


@pytest.fixture
def reader(prepared, tmp_path, monkeypatch):
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder, symlinks=True, copy_function=_link)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{folder}/.venv/bin{os.pathsep}{os.environ['PATH']}")
    return folder


# -- sh


def _edgekiln(arguments):
    """Run a command in this process; what it printed."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(list(arguments))
    out.flush()
    err.flush()
    said = err.buffer.getvalue().decode()
    assert left.value.code in {None, 0}, (
        f"edgekiln {' '.join(arguments)}: exit code {left.value.code}: {said}"
    )
    return out.buffer.getvalue().decode()


def _run_line(line):
    commands = shell_commands(line)
    if any(map(is_pending, commands)):
        return
    if commands[0][0] in {"make", "pip"}:
        _check_known(commands[0])
    elif is_edgekiln(commands[0]) and commands[0][1] == "init":
        _init(commands[0][1:])
    elif (
        len(commands) == 1 and is_edgekiln(commands[0]) and not re.search(r"[<>$*]", line.partition(" #")[0])
    ):
        _edgekiln(commands[0][1:])
    else:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: exit code {done.returncode}: {done.stderr}"


def _init(arguments):
    """``init`` as printed. The page goes on with the tiny recipe of that name: what is written would train for long."""
    out = Path(arguments[arguments.index("--out") + 1] if "--out" in arguments else "recipe.toml")
    tiny, name = out.read_text("utf-8"), load_recipe(out).name
    out.unlink()
    _edgekiln(arguments)
    assert load_recipe(out).name == name
    out.write_text(tiny, "utf-8")


def _check_known(command):
    """Targets of the Makefile, extras and names that pip would be given; nothing is run."""
    program, *words = command
    words = [word for word in words if not word.startswith("-") and "=" not in word.partition("[")[0]]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert set(words) <= set(targets), command
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for word in words[1:]:
        name, _, extras = word.rstrip("]").partition("[")
        is_wheel = WHEEL.fullmatch(name.rpartition("/")[2])
        assert not extras or name in {"edgekiln", "."} or is_wheel, command
        assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"]), command


@each_document
def test_commands_of_all_blocks_are_complete(document, reader):
    for fence in fences(document, "sh"):
        for line in fence.lines():
            for command in shell_commands(line):
                if command[0] in {"make", "pip"}:
                    _check_known(command)
        for arguments in edgekiln_commands(fence):
            command, path, rest = find_command(arguments)
            assert {w.partition("=")[0] for w in rest if w.startswith("--")} <= options_of(command), (
                fence.place
            )
            if path:
                command.make_context(path[-1], list(rest))  # raises UsageError


# -- python


def _run_python(fence, namespace):
    code = "\n" * fence.line + fence.body  # so that a traceback shows the document's line
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, fence.place, "exec"), namespace)


@each_document
def test_imports_of_all_blocks_exist(document):
    for fence in fences(document, "python"):
        for node in ast.walk(ast.parse(fence.body)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("edgekiln"):
                module = __import__(node.module, fromlist=["*"])
                assert all(hasattr(module, alias.name) for alias in node.names), fence.place


# -- toml, json


def _complete(text):
    """A fragment with the sections that it lacks: the name in front, sections behind."""
    front = "" if re.search(r"^name =", text.partition("[")[0], re.MULTILINE) else 'name = "fragment"\n'
    missing = [
        part for key, part in SECTIONS.items() if not re.search(rf"^{re.escape(key)}", text, re.MULTILINE)
    ]
    return "".join([front, text, *missing])


@each_document
def test_recipes_load(document, reader):
    for fence in fences(document, "toml"):
        path = Path("fragment.toml")
        path.write_text(_complete(fence.body))
        assert load_recipe(path).variants, fence.place


@each_document
def test_json_blocks_are_json(document):
    for fence in fences(document, "json"):
        json.loads(fence.body)


# -- all of them


def _run_fence(fence, namespace):
    match fence.language:
        case "sh":
            for line in fence.lines():
                _run_line(line)
        case "python":
            _run_python(fence, namespace)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name != EMBEDDING], ids=name_of)
def test_blocks_run_in_their_order(document, reader):
    namespace = {"__name__": "__main__"}
    for fence in fences(document):
        if fence.reason is None:
            try:
                _run_fence(fence, namespace)
            except (Exception, pytest.fail.Exception) as problem:
                raise AssertionError(f"{fence.place}: {type(problem).__name__}: {problem}") from problem


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("edgekiln predict nowhere photo.jpg", "exit code 2: edgekiln: There is no folder nowhere"),
        (".venv/bin/edgekiln predict runs/photos/bundle photo.jpg | grep nothing", "exit code 1"),
        ("false && true", "false && true: exit code 1"),
        ("make dinner", "dinner"),
        ("pip install 'edgekiln[everything]'", "everything"),
    ],
)
def test_a_line_that_does_not_work_is_found(reader, line, said):
    with pytest.raises(AssertionError) as found:
        _run_line(line)
    assert said in str(found.value)


# -- the markers themselves


@each_document
def test_languages_are_known(document):
    """A misspelt language, or an indented fence, would let a block off."""
    assert {fence.language for fence in fences(document)} <= LANGUAGES
    text = document.read_text("utf-8")
    assert text.count("```") == 2 * len(fences(document))


@each_document
def test_markers_stand_above_a_fence_and_give_a_reason(document):
    marked = [fence for fence in fences(document) if fence.reason is not None]
    markers = re.findall(r"^<!-- not executed", document.read_text("utf-8"), re.MULTILINE)
    assert len(markers) == len(marked)
    assert all(len(fence.reason.split()) >= 3 for fence in marked)
