"""Fixtures shared by all tests: small labelled folders, and two finished runs that many tests look at."""

from pathlib import Path

import pytest
from tests_support import ROOT, TENSORRT_VARIANTS, TINY_RECIPE, write_pictures

from edgekiln.runtime.telemetry import refuse_telemetry

refuse_telemetry()  # before any test module loads onnxruntime


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory):
    """No test reads or writes the user's own engine cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKILN_CACHE", str(tmp_path_factory.mktemp("cache") / "engines"))
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def tiny_recipe(tmp_path) -> Path:
    write_pictures(tmp_path / "pictures")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A whole run of the tiny CNN on coloured noise: (recipe path, runs folder, RunResult). Read-only."""
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.run import run_recipe
    from edgekiln.pipeline.workspace.progress import SilentProgress

    folder = tmp_path_factory.mktemp("tiny")
    write_pictures(folder / "pictures")
    (folder / "tiny.toml").write_text(TINY_RECIPE)
    result = run_recipe(load_recipe(folder / "tiny.toml"), folder / "runs", SilentProgress())
    return folder / "tiny.toml", folder / "runs", result


@pytest.fixture(scope="session")
def hostile_networks(tmp_path_factory) -> Path:
    """Exported networks with no, one and three products that INT8 cannot bear; see ``hostile``. Read-only."""
    from hostile import export_networks

    return export_networks(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="session")
def tensorrt_run(tmp_path_factory):
    """The tiny recipe with TensorRT, RTX and CUDA variants: (recipe path, runs folder, RunResult). Read-only.

    TensorRT-RTX engines are really built, which needs no GPU; nothing is run where there is none.
    """
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.run import run_recipe
    from edgekiln.pipeline.workspace.progress import SilentProgress

    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    folder = tmp_path_factory.mktemp("tensorrt")
    write_pictures(folder / "pictures")
    text = TINY_RECIPE.replace('name = "tiny"', 'name = "engines"').replace(
        "[gate]", TENSORRT_VARIANTS + "[gate]"
    )
    (folder / "engines.toml").write_text(text)
    result = run_recipe(load_recipe(folder / "engines.toml"), folder / "runs", SilentProgress())
    return folder / "engines.toml", folder / "runs", result


@pytest.fixture(scope="session")
def lite0_run(tmp_path_factory):
    """EfficientNet-Lite0 with its real weights on the real traffic lights, head only: RunResult. Read-only."""
    from edgekiln.pipeline.recipe import load_recipe
    from edgekiln.pipeline.run import run_recipe
    from edgekiln.pipeline.workspace.progress import SilentProgress

    recipe = load_recipe(
        ROOT / "recipes" / "traffic-lights.toml",
        ["finetune.epochs=0", "benchmark.enabled=false", "variants.int8.calibration_images=128"],
    )
    return run_recipe(recipe, tmp_path_factory.mktemp("lite0"), SilentProgress())
