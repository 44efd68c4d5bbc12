"""What is said when a GPU runs out of memory, on a GPU whose memory is a formula."""

import gc
import weakref

import numpy as np
import pytest
import torch
from fake_gpu_memory import GIB, Gpu

from edgekiln.pipeline.training.gpu_memory import (
    StepMemory,
    explain_out_of_memory,
    measure_step_memory,
    suggest_parts,
)
from edgekiln.pipeline.training.probe import evaluate_model, extract_features
from edgekiln.runtime.errors import ExitCode, ResourceError


def fail_with(gpu, batch, accumulate=1, run_step=None):
    with pytest.raises(ResourceError) as caught, explain_out_of_memory(batch, accumulate, run_step=run_step):
        gpu.step(-(-batch // accumulate))
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert caught.value.exit_code == ExitCode.RESOURCES
    return caught.value


def test_the_batch_that_would_fit_is_told(monkeypatch):
    gpu = Gpu(monkeypatch, total=24 * GIB, fixed=2 * GIB, per_picture=GIB // 8)
    error = fail_with(gpu, 256, run_step=gpu.step)
    assert error.message == (
        "The GPU's memory does not hold a training step's 256 pictures at once, which need about 34.0 GiB: "
        "NVIDIA A10 has 24.0 GiB."
    )
    # 0.9 * 24 = 2 + B / 8 gives 156; two parts of 128 take 2 + 16 GiB each.
    assert error.hint == (
        "156 would fit. finetune.accumulate = 2 computes the same step in parts of 128, in about 18.0 GiB, by two "
        "measured steps; finetune.batch_size = 156 takes smaller steps."
    )
    gpu.step(128)  # which is true


def test_moments_that_come_after_the_first_step_count_as_fixed(monkeypatch):
    gpu = Gpu(monkeypatch, total=24 * GIB, fixed=GIB, per_picture=GIB // 4, moments=3 * GIB)
    assert measure_step_memory(gpu.step, 128) == StepMemory(4 * GIB, GIB // 4)
    assert gpu.steps == [16, 16, 32]


def test_memory_of_others_is_told_and_not_counted_on(monkeypatch):
    gpu = Gpu(monkeypatch, total=24 * GIB, fixed=2 * GIB, per_picture=GIB // 8, others=14 * GIB)
    error = fail_with(gpu, 256, accumulate=2, run_step=gpu.step)
    assert "NVIDIA A10 has 10.0 GiB, 14.0 GiB of its 24.0 GiB are held by others." in error.message
    assert "56 would fit. finetune.accumulate = 5 computes the same step in parts of 52" in error.hint


def test_smaller_steps_are_tried_where_an_eighth_is_too_much(monkeypatch):
    gpu = Gpu(monkeypatch, total=24 * GIB, fixed=GIB, per_picture=GIB)
    error = fail_with(gpu, 512, run_step=gpu.step)
    assert gpu.steps == [512, 64, 16, 16, 32, 4, 4, 8]
    assert "20 would fit. finetune.accumulate = 26 computes the same step in parts of 20" in error.hint


def test_where_nothing_fits_it_says_so(monkeypatch):
    gpu = Gpu(monkeypatch, total=4 * GIB, fixed=3 * GIB, per_picture=GIB)
    error = fail_with(gpu, 4, run_step=gpu.step)
    assert error.hint.startswith("Steps of 2 and 4 pictures do not both fit either: lower data.size")
    assert "needs about" not in error.message


def test_where_less_than_two_pictures_would_fit_it_says_so(monkeypatch):
    gpu = Gpu(monkeypatch, total=100 * GIB, fixed=88 * GIB, per_picture=3 * GIB)  # the rest is the reserve
    assert fail_with(gpu, 6, run_step=gpu.step).hint.startswith(
        "Not even 2 pictures would fit: lower data.size"
    )


def test_without_a_step_to_measure_there_is_no_figure(monkeypatch):
    gpu = Gpu(monkeypatch, total=4 * GIB, fixed=GIB, per_picture=GIB)
    error = fail_with(gpu, 64)
    assert gpu.steps == [64]
    assert error.hint == "Raise finetune.accumulate, which computes the same step in smaller parts."


@pytest.mark.parametrize(
    ("batch", "fits", "wanted"),
    [(256, 156, (2, 128)), (100, 30, (4, 25)), (127, 40, (4, 32)), (32, 3, (11, 3)), (3, 2, (2, 2))],
)
def test_the_suggestion_keeps_the_step_in_parts_that_fit(batch, fits, wanted):
    parts, pictures = suggest_parts(batch, fits)
    assert (parts, pictures) == wanted
    assert pictures <= fits


def test_the_failed_steps_tensors_are_freed_before_anything_is_measured(monkeypatch):
    """Or the small steps would not fit either."""
    gpu = Gpu(monkeypatch, total=24 * GIB, fixed=GIB, per_picture=GIB)
    seen = []

    def step():
        activations = torch.zeros(3)
        seen.append(weakref.ref(activations))
        gpu.step(64)

    def measured(batch):
        gc.collect()
        assert seen[0]() is None
        gpu.step(batch)

    with pytest.raises(ResourceError), explain_out_of_memory(64, run_step=measured):
        step()
    assert len(gpu.steps) > 1


def test_other_errors_and_success_pass_through(monkeypatch):
    with explain_out_of_memory(4):
        pass
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory(4):
        raise RuntimeError("shape")


class _Limited(torch.nn.Module):
    """A network whose memory holds so many pictures; its head has two features to see."""

    def __init__(self, most):
        super().__init__()
        self.most, self.asked, self.head = most, [], torch.nn.Linear(2, 2)

    def forward(self, pixels):
        self.asked.append(len(pixels))
        logits = self.head(pixels.float().mean((1, 2))[:, :2])
        if len(pixels) > self.most:  # after the head has seen the batch
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logits


def test_judging_takes_smaller_batches_where_memory_is_small():
    frames = np.random.default_rng(0).integers(0, 256, (100, 4, 4, 3), np.uint8)
    small, large = _Limited(20), _Limited(1000)
    large.load_state_dict(small.state_dict())
    found = evaluate_model(small, frames)
    torch.testing.assert_close(found, evaluate_model(large, frames))
    assert small.asked == [64, 32, 16, 16, 16, 16, 16, 16, 4]
    assert large.asked == [64, 36]


def test_features_are_those_of_every_picture_once():
    frames = np.random.default_rng(0).integers(0, 256, (70, 4, 4, 3), np.uint8)
    model = _Limited(40)
    model.head.register_forward_hook(lambda *_: _raise_over(40, model.asked[-1]), prepend=True)
    features = extract_features(model, model.head, frames, torch.device("cpu"))
    assert features.shape == (70, 2)
    torch.testing.assert_close(features[69], torch.from_numpy(frames[69, ..., :2].mean((0, 1))))


def _raise_over(most, asked):
    if asked > most:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_gpu_that_does_not_hold_one_picture_is_told():
    with pytest.raises(ResourceError, match="does not hold one picture") as caught:
        evaluate_model(_Limited(0), np.zeros((3, 4, 4, 3), np.uint8))
    assert caught.value.exit_code == 6
