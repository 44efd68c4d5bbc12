"""Who is timed: the baseline on the right device, engines, peers on the same files, and who cannot take part."""

import importlib.util

import numpy as np
import pytest
import torch
from contenders_support import context_of, names

from edgekiln.pipeline.proof import contenders
from edgekiln.pipeline.proof.baseline import open_baseline, open_gpu_baseline
from edgekiln.pipeline.proof.contenders import choose_contenders
from edgekiln.pipeline.workspace.stage_files import BASELINE, read_logits, save_logits
from edgekiln.runtime.errors import DeviceError, InputError, UsageError

COUNT = np.arange(8)


def test_baseline_comes_first_and_engines_last(tiny_run, tmp_path):
    chosen = choose_contenders(context_of(tiny_run, tmp_path, ["pytorch-tuned", "onnxruntime"]), COUNT)
    assert names(chosen) == [
        BASELINE,
        "pytorch-tuned",
        "onnxruntime:fp32",
        "onnxruntime:int8",
        "fp32",
        "int8",
    ]
    assert list(chosen.peers.items()) == [
        ("pytorch-tuned", "fp32"),
        ("onnxruntime:fp32", "fp32"),
        ("onnxruntime:int8", "int8"),
    ]
    assert chosen.absent == {}
    assert [c.name for c in chosen.contenders if c.optional] == list(chosen.peers)
    peer, ours = chosen.contenders[3], chosen.contenders[5]
    assert peer.arguments["path"] == ours.arguments["paths"][0]
    assert np.array_equal(peer.logits, ours.logits)
    assert {c.tolerance for c in chosen.contenders} == {1e-3}


def test_openvino_gets_the_same_files_and_room_for_its_own_rounding(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    context = context_of(tiny_run, tmp_path, ["openvino"])
    chosen = choose_contenders(context, COUNT)
    assert names(chosen)[1:3] == ["openvino:fp32", "openvino:int8"]
    fp32, int8 = chosen.contenders[1:3]
    assert int8.arguments == {"paths": chosen.contenders[4].arguments["paths"], "backend": "openvino"}
    assert fp32.tolerance == 1e-3
    ours, exact = (read_logits(context.inputs[f"evaluate.{name}"]) for name in ("int8", BASELINE))
    assert int8.tolerance == pytest.approx(max(0.01, np.abs(ours - exact).max() / np.ptp(ours)))


@pytest.mark.parametrize(("factor", "tolerance"), [(1.0, 0.01), (100.0, 0.25)])
def test_room_for_rounding_has_bounds(tiny_run, tmp_path, factor, tolerance):
    context = context_of(tiny_run, tmp_path)
    other = tmp_path / "int8"
    other.mkdir()
    save_logits(other, factor * read_logits(context.inputs[f"evaluate.{BASELINE}"]))
    context.inputs["evaluate.int8"] = other
    assert contenders._rounding_tolerance(context, "int8") == tolerance


def test_peers_that_cannot_be_tried_say_why_and_what_to_do(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chosen = choose_contenders(context_of(tiny_run, tmp_path, ["openvino", "pytorch-gpu"]), COUNT)
    assert names(chosen) == [BASELINE, "fp32", "int8"]
    assert list(chosen.absent.items()) == [
        ("openvino", "it is not installed. Run: pip install 'edgekiln[openvino]'"),
        ("pytorch-gpu", "torch finds no GPU; `nvidia-smi` tells what is missing"),
    ]


def test_library_without_a_file_to_run_is_named(tiny_run, tmp_path):
    context = context_of(tiny_run, tmp_path, ["onnxruntime"])
    for name in ("fp32", "int8"):
        context.inputs[f"evaluate.{name}"] = tmp_path  # was not evaluated
    chosen = choose_contenders(context, COUNT)
    assert names(chosen) == [BASELINE]
    assert (
        chosen.absent["onnxruntime"] == "no variant of onnxruntime-cpu was evaluated whose file it could run"
    )


# -- on a GPU, as far as a machine without one can tell


@pytest.mark.parametrize(("sees", "gpu_engine"), [(False, True), (True, False)])
def test_baseline_stays_on_the_cpu_unless_torch_and_an_engine_use_a_gpu(
    tiny_run, tmp_path, monkeypatch, sees, gpu_engine
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    chosen = choose_contenders(context_of(tiny_run, tmp_path, gpu_engine=gpu_engine), COUNT)
    assert chosen.contenders[0].factory.endswith(":open_baseline")
    assert chosen.peers == {}


def test_baseline_moves_to_the_gpu_strictly_and_the_cpu_stays_as_a_peer(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = choose_contenders(context_of(tiny_run, tmp_path, ["pytorch-gpu"], gpu_engine=True), COUNT)
    gpu_ones = ["pytorch-gpu-tf32", "pytorch-gpu-fp16", "pytorch-gpu-graph"]
    assert names(chosen) == [BASELINE, "pytorch-cpu", *gpu_ones, "fp32", "int8", "gpu"]
    by_name = {contender.name: contender for contender in chosen.contenders}
    assert [by_name[name].arguments["way"] for name in (BASELINE, *gpu_ones)] == [
        "fp32",
        "tf32",
        "fp16",
        "fp16-graph",
    ]
    assert list(chosen.peers.values()) == ["fp32", "tf32", "fp16", "fp16"]
    # The baseline must answer as in the accuracy run; TF32 and FP16 have 11 bits.
    assert [by_name[name].tolerance for name in (BASELINE, *gpu_ones)] == [1e-3, 2e-2, 2e-2, 2e-2]


@pytest.fixture
def torch_arguments(tiny_run, tmp_path):
    arguments = choose_contenders(context_of(tiny_run, tmp_path), COUNT).contenders[0].arguments
    return {key: arguments[key] for key in ("checkpoint", "backbone")}


@pytest.mark.parametrize(
    ("way", "tolerance"),
    # On the CPU TF32 means nothing; FP16 has 11 bits.
    [("fp32", 1e-5), ("tf32", 1e-5), ("fp16", 2e-2)],
)
def test_each_way_of_the_gpu_computes_the_baseline(torch_arguments, way, tolerance):
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    reference = open_baseline(**torch_arguments, threads=1, channels_last=False).run(frames)
    session = open_gpu_baseline(**torch_arguments, way=way, device="cpu")
    assert (session.device, session.backend, session.threads) == ("cpu", "pytorch-cpu", None)
    assert (session.frame_shape, session.num_classes) == ((32, 32), 3)
    np.testing.assert_allclose(session.run(frames), reference, atol=tolerance * np.ptp(reference))
    with pytest.raises(UsageError, match="takes one image a call, got 2"):
        session.run(np.concatenate([frames, frames]))
    with pytest.raises(InputError, match=r"wanted uint8 \(N, 32, 32, 3\)"):
        session.run(frames[:, 1:])
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(frames)


def test_what_needs_a_gpu_says_so(torch_arguments, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="finds no GPU"):
        open_gpu_baseline(**torch_arguments, way="fp32")
    with pytest.raises(UsageError, match="replays a CUDA graph, which cpu has not"):
        open_gpu_baseline(**torch_arguments, way="fp16-graph", device="cpu")
