"""The tiny run as its benchmark stage sees it, for the tests of who is timed."""

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.pipeline.workspace.stage_files import StageContext

GPU_VARIANT = """
[[variants]]
name = "gpu"
precision = "fp32"
backend = "onnxruntime-cuda"
required = false
[gate]"""


def context_of(tiny_run, tmp_path, peers=(), *, gpu_engine=False):
    """The tiny run as its benchmark stage would see it; ``gpu_engine``: as if an engine had run on a GPU too."""
    path, _, result = tiny_run
    inputs = {name: record.folder for name, record in result.stages.items()}
    text = path.read_text()
    if gpu_engine:
        text = text.replace("[gate]", GPU_VARIANT)
        inputs |= {"variant.gpu": inputs["variant.fp32"], "evaluate.gpu": inputs["evaluate.fp32"]}
    (tmp_path / "recipe.toml").write_text(text)
    peers = ", ".join(f'"{peer}"' for peer in peers)
    recipe = load_recipe(tmp_path / "recipe.toml", [f"benchmark.peers=[{peers}]"])
    return StageContext(recipe, tmp_path, inputs, SilentProgress())


def names(chosen):
    return [contender.name for contender in chosen.contenders]
