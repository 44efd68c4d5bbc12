"""Fixtures shared by all tests: small labelled folders, and finished runs that many tests look at."""

import shutil
from pathlib import Path

import pytest
from made_once import MadeOnce, shared_place
from tests_support import ROOT, TENSORRT_VARIANTS, TINY_RECIPE, write_pictures

from edgekiln.runtime.telemetry import refuse_telemetry

refuse_telemetry()  # before any test module loads onnxruntime


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: those at the end are short, and no worker waits long for the last one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory):
    """No test reads or writes the user's own engine cache: one for each worker."""
    folder = tmp_path_factory.mktemp("cache") / "engines"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKILN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def made_once(pytestconfig, tmp_path_factory) -> MadeOnce:
    return MadeOnce(shared_place(pytestconfig, tmp_path_factory))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def tiny_recipe(tmp_path) -> Path:
    write_pictures(tmp_path / "pictures")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_RECIPE)
    return path


def run_on_pictures(path: Path, text: str):
    """Write a recipe and its pictures, and run it whole: (recipe path, runs folder, RunResult)."""
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.run import run_recipe
    from edgekiln.pipeline.workspace.progress import SilentProgress

    write_pictures(path.parent / "pictures")
    path.write_text(text)
    return path, path.parent / "runs", run_recipe(load_recipe(path), path.parent / "runs", SilentProgress())


@pytest.fixture(scope="session")
def tiny_run(made_once):
    """A whole run of the tiny CNN on coloured noise: (recipe path, runs folder, RunResult). Read-only."""
    return made_once("tiny", lambda folder: run_on_pictures(folder / "tiny.toml", TINY_RECIPE))


@pytest.fixture(scope="session")
def hostile_networks(tmp_path_factory) -> Path:
    """Exported networks with no, one and three products that INT8 cannot bear; see ``hostile``. Read-only."""
    from hostile import export_networks

    return export_networks(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def tensorrt_run(made_once, engine_cache):
    """The tiny recipe with TensorRT, RTX and CUDA variants: (recipe path, runs folder, RunResult). Read-only.

    TensorRT-RTX engines are really built, which needs no GPU; nothing is run where there is none.
    """
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    text = TINY_RECIPE.replace('name = "tiny"', 'name = "engines"').replace(
        "[gate]", TENSORRT_VARIANTS + "[gate]"
    )

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGEKILN_CACHE", str(folder / "cache"))
            return run_on_pictures(folder / "engines.toml", text), folder / "cache"

    run, built = made_once("tensorrt", make)
    engine_cache.mkdir(mode=0o700, exist_ok=True)
    for entry in built.iterdir():  # whichever worker built them, each finds them in its own cache
        if entry.is_dir() and not (engine_cache / entry.name).exists():
            shutil.copytree(entry, engine_cache / entry.name)
    return run


@pytest.fixture(scope="session")
def lite0_run(made_once):
    """EfficientNet-Lite0 with its real weights on the real traffic lights, head only: RunResult. Read-only."""
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.run import run_recipe
    from edgekiln.pipeline.workspace.progress import SilentProgress

    recipe = load_recipe(
        ROOT / "recipes" / "traffic-lights.toml",
        ["finetune.epochs=0", "benchmark.enabled=false", "variants.int8.calibration_images=128"],
    )
    return made_once("lite0", lambda folder: run_recipe(recipe, folder, SilentProgress()))
