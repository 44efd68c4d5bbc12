"""``module:callable`` beside a recipe: found from any working folder, in children too, after what is installed."""

import os
import subprocess
import sys

import pytest

from edgekiln.pipeline.data import import_callable
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.runtime.errors import DataError
from edgekiln.runtime.processes import child_environment, code_command

RECIPE = """
name = "own"
[data]
source = "{source}"
size = 32
[backbone]
model = "{model}"
weights = "none"
[[variants]]
name = "fp32"
precision = "fp32"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a recipe, which is not the working folder; the import path is as before afterwards."""
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = tmp_path / "project"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def load(source="digits", model="edgekiln/tiny-cnn"):
        (folder / "recipe.toml").write_text(RECIPE.format(source=source, model=model))
        return load_recipe(folder / "recipe.toml")

    load.folder = folder
    return load


def import_in_child(module):
    done = subprocess.run(
        code_command(f"import {module}; print({module}.__file__)"),
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or done.stderr


def test_a_module_beside_the_recipe_is_found_here_and_in_children(project, tmp_path):
    own = project.folder / "own_net_beside.py"
    own.write_text("def build(classes):\n    return classes\n")
    (tmp_path / "elsewhere" / "only_here.py").write_text("def build(classes): ...\n")
    recipe = project(model="own_net_beside:build")
    assert recipe.notices == ()
    assert import_callable(recipe.backbone.model)(3) == 3
    assert import_in_child("own_net_beside") == str(own)
    with pytest.raises(
        DataError, match=r"No module named 'only_here'.*beside the recipe; never in the working"
    ):
        import_callable("only_here:build")
    sys.modules.pop("own_net_beside")


@pytest.mark.parametrize("key", ["source", "model"])
def test_what_is_installed_comes_first_and_is_told(project, key):
    (project.folder / "random.py").write_text("raise SystemExit(77)")
    (project.folder / "numpy").mkdir()
    [notice] = project(**{key: "random:choice"}).notices
    assert notice.startswith(
        f"{project.folder / 'random.py'} is not used: another module 'random' is found before"
    )
    assert os.__file__.replace("os.py", "random.py") in notice
    assert "Rename" in notice
    assert import_in_child("random") == os.__file__.replace("os.py", "random.py")
    [notice] = project(**{key: "numpy.linalg:norm"}).notices
    assert "another module 'numpy'" in notice


def test_a_recipe_without_own_code_leaves_the_import_path_alone(project):
    before = [*sys.path]
    assert project().notices == ()
    assert sys.path == before
