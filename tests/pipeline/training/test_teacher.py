"""Distillation: the published loss, a teacher that learns nothing, and refusals of one that does not fit."""

import json
from dataclasses import replace

import pytest
import torch
from finetune_support import CONTRACT, events, job
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.pipeline.recipe import BackboneSettings, TeacherSettings, load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.checkpoint import CHECKPOINT_NAME, save_checkpoint
from edgekiln.pipeline.training.finetune import finetune
from edgekiln.pipeline.training.teacher import Teacher, distillation_loss
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import RecipeError

CPU = torch.device("cpu")


def save_teacher(path, model="timm/test_resnet", contract=CONTRACT):
    torch.manual_seed(0)
    settings = BackboneSettings(model=model, weights="none")
    network = build_backbone(settings, len(contract.classes), contract.height).network
    save_checkpoint(dict(network.state_dict()), contract, model, path)
    return network.eval()


def test_the_loss_is_the_published_formula():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    for temperature in (1.0, 4.0):
        p, q = ((x / temperature).softmax(1) for x in (teacher, student))
        expected = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
        torch.testing.assert_close(distillation_loss(student, teacher, temperature), expected)
    assert float(distillation_loss(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-12)


def test_the_teacher_answers_as_its_network_does(tmp_path):
    network = save_teacher(tmp_path / "t.safetensors")
    pixels = torch.randint(0, 256, (3, 3, 16, 16)).float()
    answer = Teacher(tmp_path / "t.safetensors", CONTRACT, CPU).answer(pixels)
    assert not answer.requires_grad
    torch.testing.assert_close(answer, network((pixels - 127) / 128).detach(), atol=1e-4, rtol=1e-4)


def test_a_student_learns_from_it_and_the_log_tells(tmp_path):
    save_teacher(tmp_path / "t.safetensors")
    (tmp_path / "out").mkdir()
    teacher = TeacherSettings(checkpoint=tmp_path / "t.safetensors", weight=0.25, temperature=2.0)
    finetune(replace(job(epochs=1), teacher=teacher), tmp_path / "out")
    steps = events(tmp_path / "out", "step")
    assert all(step["teacher_loss"] > 0 for step in steps)
    (tmp_path / "plain").mkdir()
    finetune(job(epochs=1), tmp_path / "plain")
    first, plain = steps[0], events(tmp_path / "plain", "step")[0]
    # The first step has the plain run's pictures, weights and label loss; figures are rounded to 1e-6.
    assert first["loss"] == pytest.approx(0.75 * plain["loss"] + 0.25 * first["teacher_loss"], abs=3e-6)


def test_a_student_that_only_imitates_comes_to_agree_with_its_teacher(tmp_path):
    save_teacher(tmp_path / "t.safetensors")
    teacher = TeacherSettings(checkpoint=tmp_path / "t.safetensors", weight=1.0, temperature=1.0)
    finetune(replace(job(epochs=4, learning_rate=1e-3, probe=False), teacher=teacher), tmp_path)
    losses = [step["teacher_loss"] for step in events(tmp_path, "step")]
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (Contract(height=16, width=16, classes=("dark", "bright")), "it lacks light; it adds bright"),
        (Contract(height=16, width=16, classes=("light", "dark")), "other classes than the data: another order"),
        (Contract(height=32, width=32, classes=("dark", "light")), "height 32, the recipe prepares with 16"),
        (Contract(height=16, width=16, classes=("dark", "light"), interpolation="bicubic"),
         "interpolation 'bicubic', the recipe prepares with 'bilinear'"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused(tmp_path, contract, message):
    save_teacher(tmp_path / "t.safetensors", contract=contract)
    with pytest.raises(RecipeError, match=message):
        Teacher(tmp_path / "t.safetensors", CONTRACT, CPU)


def test_a_plain_weight_file_is_no_teacher(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=r"is no checkpoint of edgekiln"):
        Teacher(tmp_path / "w.pth", CONTRACT, CPU)
    with pytest.raises(RecipeError, match="There is no weight file"):
        Teacher(tmp_path / "absent.safetensors", CONTRACT, CPU)


def test_a_run_learns_from_an_earlier_one_and_tells_no_folder_of_this_machine(tmp_path):
    write_pictures(tmp_path / "pictures")
    (tmp_path / "tiny.toml").write_text(TINY_RECIPE)
    first = run_recipe(
        load_recipe(tmp_path / "tiny.toml"), tmp_path / "a", SilentProgress(), until="finetune"
    )
    checkpoint = first.stages["finetune"].folder / CHECKPOINT_NAME
    checkpoint.rename(tmp_path / "teacher.safetensors")
    text = TINY_RECIPE.replace(
        "[[variants]]", '[teacher]\ncheckpoint = "teacher.safetensors"\n[[variants]]', 1
    )
    (tmp_path / "student.toml").write_text(text)
    result = run_recipe(load_recipe(tmp_path / "student.toml"), tmp_path / "b", SilentProgress())
    assert json.loads((result.bundle / "report.json").read_text())["recipe"]["teacher"]["checkpoint"] == (
        "teacher.safetensors"
    )
    assert str(tmp_path) not in (result.bundle / "report.json").read_text()
