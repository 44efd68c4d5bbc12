"""Several processes train as one does: the same loss curve, one writer, and nobody is left behind."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetune_support import events, job

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, load_tensors
from edgekiln.pipeline.training.finetune import finetune
from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.pipeline.training.state import PROGRESS_NAME
from edgekiln.pipeline.training.world import ALONE, World, check_batch
from edgekiln.runtime.errors import RecipeError

TOLERANCE = 2e-4  # of a loss: the same sums in another order, through 20 steps of AdamW


def torchrun(arguments, cwd, processes=2, **environment):
    """The processes' output. Each has one thread, and torchrun finds a free port by itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


# -- parts


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 32, 33])
def test_parts_are_everything_once_and_differ_by_one_at_most(size, count):
    parts = [range(count)[World(rank, size).part(count)] for rank in range(size)]
    assert [place for part in parts for place in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_smaller_than_the_processes_is_refused():
    check_batch(4, 2, World(0, 2))
    with pytest.raises(RecipeError, match=r"batch_size 4 is smaller than 2 processes x 3 parts.*raise it"):
        check_batch(4, 3, World(0, 2))


# -- real processes

RECIPE = """
name = "two"
[data]
source = "digits"
size = 16
train_share = 0.3
[backbone]
model = "edgekiln/tiny-cnn"
weights = "none"
[finetune]
epochs = 2
batch_size = 40
threads = 1
probe = false
ema = 0.9
accumulate = {accumulate}
[source_task]
alpha = 0.5
[source_task.data]
source = "imagefolder"
path = "other"
[benchmark]
enabled = false
[[variants]]
name = "fp32"
precision = "fp32"
"""


def write_stripes(folder):
    from PIL import Image

    for name, size in (("rows", (1, 16)), ("columns", (16, 1))):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            picture = Image.effect_noise(size, 80 + number).resize((16, 16), Image.Resampling.NEAREST)
            picture.convert("RGB").save(folder / name / f"{number}.png")


def steps_of(root):
    [log] = root.rglob(LOG_NAME)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return lines, [line for line in lines if line["event"] == "step"]


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(edgekiln, tmp_path):
    write_stripes(tmp_path / "other")
    for name, accumulate in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.toml").write_text(RECIPE.format(accumulate=accumulate))
    assert edgekiln("train", tmp_path / "one.toml", "--runs", tmp_path / "one", "-q")[0] == 0
    done = torchrun(["-m", "edgekiln.pipeline", "train", "two.toml", "--runs", "two"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^finetune ", done.stdout, re.MULTILINE)) == 1, "one process tells of the result"
    (_, alone), (lines, together) = steps_of(tmp_path / "one"), steps_of(tmp_path / "two")
    assert [s["step"] for s in together] == [s["step"] for s in alone] == list(range(1, len(alone) + 1))
    for name in ("loss", "target_loss", "source_loss"):
        assert [s[name] for s in together] == pytest.approx([s[name] for s in alone], abs=TOLERANCE)
    assert len({s["loss"] for s in alone}) == len(alone) > 10
    assert [line for line in lines if line["event"] == "processes"] == [
        {"event": "processes", "step": 0, "count": 2, "threads": 1}
    ]
    [first], [second] = ((tmp_path / n).rglob(CHECKPOINT_NAME) for n in ("one", "two"))
    weights = load_tensors(first)[0], load_tensors(second)[0]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-3, rtol=1e-2)
    again = torchrun(["-m", "edgekiln.pipeline", "train", "two.toml", "--runs", "two"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stderr, "a stage that is done needs nobody, and nobody waits"


CHILD = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from finetune_support import job
from edgekiln.pipeline.training import parallel
from edgekiln.pipeline.training.finetune import finetune
from edgekiln.pipeline.training.world import read_world
world = read_world()
work = job(epochs=3, batch_size=35, learning_rate=1e-3, l2_sp=0.1)
with parallel._group(world):
    finetune(work, Path(sys.argv[1]) if world.leads else None, world)
"""


@pytest.mark.slow
def test_a_run_that_one_process_began_is_continued_by_two(tmp_path):
    for name in ("whole", "both"):
        (tmp_path / name).mkdir()
    work = job(epochs=3, batch_size=35, learning_rate=1e-3, l2_sp=0.1)
    finetune(work, tmp_path / "whole")
    from edgekiln.pipeline.training.finetune import training

    with training(work, tmp_path / "both", ALONE) as trainer:
        trainer.begin()
        trainer.step.take()
        trainer.step.take()
        trainer.validation.judge(ALONE)
        trainer.save()
    assert (tmp_path / "both" / PROGRESS_NAME).exists()
    (tmp_path / "child.py").write_text(CHILD.format(path=[str(Path(__file__).parents[2])]))
    done = torchrun([str(tmp_path / "child.py"), str(tmp_path / "both")], tmp_path)
    assert done.returncode == 0, done.stderr
    whole, both = (events(tmp_path / name, "step") for name in ("whole", "both"))
    assert [s["step"] for s in both] == [1, 2, 3, 4, 5, 6]
    assert [s["loss"] for s in both] == pytest.approx([s["loss"] for s in whole], abs=TOLERANCE)
    assert not (tmp_path / "both" / PROGRESS_NAME).exists()


@pytest.mark.slow
def test_a_mistake_is_told_once_and_ends_all_processes(tmp_path):
    (tmp_path / "bad.toml").write_text(RECIPE.format(accumulate=1).replace('"digits"', '"digit"'))
    done = torchrun(["-m", "edgekiln.pipeline", "train", "bad.toml"], tmp_path)
    assert done.returncode != 0
    assert len(re.findall(r"^edgekiln: ", done.stderr, re.MULTILINE)) == 1
    assert "digit" in done.stderr


def test_the_order_to_followers_is_the_recipe_as_it_was_written(tmp_path):
    (tmp_path / "two.toml").write_text(RECIPE.format(accumulate=1))
    recipe = load_recipe(tmp_path / "two.toml", ["finetune.epochs=1"])
    again = type(recipe).model_validate_json(recipe.model_dump_json(exclude_unset=True))
    assert again.model_dump() == recipe.model_dump()
