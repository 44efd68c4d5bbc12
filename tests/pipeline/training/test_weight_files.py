"""Checkpoints of other trainings, written by the libraries themselves: loaded whole and told, or refused by name."""

import argparse
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.utils
import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from edgekiln.pipeline.recipe import BackboneSettings
from edgekiln.pipeline.training.backbones import build_backbone
from edgekiln.pipeline.training.weight_files import read_weights
from edgekiln.runtime.errors import RecipeError

MODEL = "timm/test_resnet"


def create(seed=3, classes=3):
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=classes)


def load(path, **changes):
    settings = BackboneSettings(model=MODEL, weights=str(path), normalization="own", **changes)
    return build_backbone(settings, 3, 64)


def equal(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


class LitClassifier(nn.Module):
    """What a LightningModule's state dict is: the network as an attribute, and a loss with a buffer beside it."""

    def __init__(self, network, name="model"):
        super().__init__()
        setattr(self, name, network)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))


class Config(dict):
    """Of a library that keeps its settings in classes of its own, as OmegaConf does."""


def lightning(network, hyper_parameters, name="model"):
    """The keys that Lightning's ``Trainer.save_checkpoint`` writes."""
    return {
        "epoch": 3, "global_step": 400, "pytorch-lightning_version": "2.5.0",
        "state_dict": LitClassifier(network, name).state_dict(), "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.3)}},
        "optimizer_states": [torch.optim.SGD(network.parameters()).state_dict()], "lr_schedulers": [],
        "hparams_name": "kwargs", "hyper_parameters": hyper_parameters,
    }  # fmt: skip


def torchvision_reference(network, **more):
    """The keys that torchvision's references/classification/train.py writes."""
    average = torch.optim.swa_utils.AveragedModel(create(seed=4), use_buffers=True)
    optimizer = torch.optim.SGD(network.parameters(), momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    states = {"model": network, "optimizer": optimizer, "lr_scheduler": scheduler, "model_ema": average}
    return {**{key: value.state_dict() for key, value in states.items()}, "epoch": 2, **more}


def timm_checkpoint(folder, network, args=None, average=False):
    """By timm's own saver, as its train.py calls it."""
    ema = timm.utils.ModelEmaV2(create(seed=4)) if average else None
    optimizer = torch.optim.SGD(network.parameters())
    saver = timm.utils.CheckpointSaver(
        network, optimizer, args=args, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder
    )
    saver.save_checkpoint(0, metric=80.0)
    return next(folder.glob("checkpoint-0*"))


def save(name, value, **options):
    def write(folder, network):
        torch.save(value(network), folder / name, **options)
        return folder / name

    return write


def save_hub(name):
    def write(folder, network):
        timm.models.save_for_hf(network, folder, safe_serialization="both")
        return folder / name

    return write


def save_distributed(folder, network):
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.save(DistributedDataParallel(torch.compile(network)).state_dict(), folder / "w.pt")
    finally:
        torch.distributed.destroy_process_group()
    return folder / "w.pt"


def compile_a_stage(network):
    state = dict(network.state_dict())
    network.layer1 = torch.compile(network.layer1)
    compiled = network.state_dict()
    assert compiled.keys() != state.keys()
    return compiled


NAMESPACE = argparse.Namespace(model="test_resnet", lr=0.1)
OLD = {"_use_new_zipfile_serialization": False}
WRITTEN = {
    "torch.save": (save("w.pt", lambda n: n.state_dict()), []),
    "torch.save, old layout": (
        save("w.pth", lambda n: n.state_dict(), _use_new_zipfile_serialization=False), []),
    "hub, pytorch_model.bin": (save_hub("pytorch_model.bin"), []),
    "hub, model.safetensors": (save_hub("model.safetensors"), []),
    "DataParallel": (save("w.pth", lambda n: nn.DataParallel(n).state_dict()), ["'module.' was removed"]),
    "compile": (save("w.pth", lambda n: torch.compile(n).state_dict()), ["'_orig_mod.' was removed"]),
    "compiled in DistributedDataParallel": (save_distributed, ["'module.' and '_orig_mod.' was removed"]),
    "a compiled stage": (save("w.pth", compile_a_stage), ["'_orig_mod.' was removed"]),
    "Lightning": (
        save("last.ckpt", lambda n: lightning(n, {"lr": 0.1, "name": "x"})),
        ["under 'state_dict'", "'model.' was removed from the names of", "not used: criterion.weight"]),
    "Lightning, compiled": (
        save("last.ckpt", lambda n: lightning(torch.compile(n), {}, "net")), ["'net.' and '_orig_mod.'"]),
    "a wrapper's own name": (
        save("w.pt", lambda n: {"backbone": LitClassifier(n, "backbone").state_dict()}),
        ["under 'backbone'", "'backbone.' was removed"]),
    "model_state_dict": (
        save("w.pt", lambda n: {"model_state_dict": n.state_dict(), "loss": 0.1}), ["'model_state_dict'"]),
    "Lightning with a Namespace": (
        save("w.ckpt", lambda n: lightning(n, NAMESPACE)), ["under 'state_dict'", "'model.' was removed"]),
    "Lightning with a Namespace, old layout": (
        save("w.ckpt", lambda n: lightning(n, NAMESPACE), **OLD), ["under 'state_dict'", "'model.' was removed"]),
    "timm": (timm_checkpoint, ["under 'state_dict'"]),
    "timm's train.py": (lambda folder, n: timm_checkpoint(folder, n, NAMESPACE), ["under 'state_dict'"]),
    "no average yet": (save("w.pt", lambda n: {"model": n.state_dict(), "ema": None}), ["under 'model'."]),
}  # fmt: skip


@pytest.mark.parametrize(("write", "says"), WRITTEN.values(), ids=WRITTEN)
def test_weights_as_other_trainings_write_them(write, says, tmp_path):
    backbone = load(write(tmp_path, create()))
    assert equal(backbone.network, create())
    told = " ".join(backbone.told)
    assert [text for text in says if text not in told] == []
    assert bool(told) == bool(says)


@pytest.mark.parametrize(
    ("write", "key"),
    [
        (lambda folder, n: timm_checkpoint(folder, n, average=True), "state_dict_ema"),
        (save("model_3.pth", torchvision_reference), "model_ema"),
        (save("model_3.pth", lambda n: torchvision_reference(n, args=NAMESPACE)), "model_ema"),
        (save("w.pt", lambda n: {"model": n.state_dict(), "ema": create(seed=4).state_dict()}), "ema"),
    ],
    ids=["timm", "torchvision", "torchvision's train.py", "ema"],
)
def test_the_moving_average_is_taken_where_a_file_has_one_and_told(write, key, tmp_path):
    backbone = load(write(tmp_path, create()))
    assert equal(backbone.network, create(seed=4))
    assert f"under {key!r}, the moving average; " in backbone.told[0]
    assert " beside it is not used" in backbone.told[0]


def test_an_average_under_a_prefix_is_taken_and_two_equals_are_refused(tmp_path):
    both = {f"model.{k}": v for k, v in create().state_dict().items()}
    torch.save(
        {**both, **{f"model_ema.module.{k}": v for k, v in create(4).state_dict().items()}}, tmp_path / "a.pt"
    )
    backbone = load(tmp_path / "a.pt")
    assert equal(backbone.network, create(seed=4))
    assert "'model_ema.module.' was removed" in backbone.told[0]
    assert ", the moving average; not below it and not used: model." in backbone.told[0]
    torch.save({**both, **{f"teacher.{k}": v for k, v in create(4).state_dict().items()}}, tmp_path / "b.pt")
    with pytest.raises(
        RecipeError, match=r"b\.pt holds the network's names under 2 prefixes: 'model\.', 'teacher\.'"
    ):
        load(tmp_path / "b.pt")


def test_a_head_of_other_classes_is_told_by_number_and_replaced(tmp_path):
    torch.save(nn.DataParallel(create(classes=10)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "w.pth")
    assert "fc.bias is 10, wanted 3" in caught.value.message
    assert caught.value.hint == (
        "Only the head differs (10 classes in the file, 3 in the data): backbone.head = 'replace' starts a fresh one."
    )
    network = load(tmp_path / "w.pth", head="replace").network
    assert torch.equal(network.conv1[0].weight, create(classes=10).conv1[0].weight)
    assert network.fc.weight.shape[0] == 3


def test_a_file_without_batchnorms_counters_is_whole(tmp_path):
    state = {k: v for k, v in create().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pth")
    assert equal(load(tmp_path / "w.pth").network, create())


def test_weights_of_another_network_name_the_nearest_in_the_file_with_shapes(tmp_path):
    torch.manual_seed(0)
    other = timm.create_model("test_efficientnet", num_classes=3)
    torch.save({"model": nn.DataParallel(other).state_dict()}, tmp_path / "w.pth")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "w.pth")
    message = caught.value.message
    assert "w.pth does not fit the model; " in message
    near = message.split("Nearest in the file to conv1.0.weight (")[1].split(": ", 1)[1]
    assert near.count(" x ") + near.count(" (") >= 5
    assert near.index("conv") < 40
    assert "the weights are those under 'model'" in message


# -- what is refused


def pickled(folder, network):
    torch.save({"epoch": 3, "model": network}, folder / "w.pt")
    return folder / "w.pt"


def script(folder, network):
    torch.jit.trace(network.eval(), torch.zeros(1, 3, 64, 64)).save(folder / "w.pt")
    return folder / "w.pt"


def cut(write, share=0.5):
    def again(folder, network):
        path = write(folder, network)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    return again


def raw(name, content):
    def write(folder, _):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def zipped(folder, _):
    np.savez(folder / "w.npz", a=np.zeros(3))
    return (folder / "w.npz").rename(folder / "w.pt")


def tensors(**values):
    return save("w.pt", lambda n: values)


REFUSED = {
    "Lightning with classes of its own": (
        save("w.ckpt", lambda n: lightning(n, {"config": Config(a=1), "args": NAMESPACE})),
        ".test_weight_files.Config besides tensors", "['state_dict'],"),
    "a whole network": (
        pickled, "holds a whole pickled network (timm.", "weights_only=False)['model'].state_dict(), 'weights.pth')"),
    "a whole network, old layout": (
        save("w.pt", lambda n: n, **OLD), "holds a whole pickled network (timm.", "weights_only=False).state_dict(),"),
    "TorchScript": (script, "is a TorchScript archive", "torch.jit.load('w.pt').state_dict()"),
    "another archive": (zipped, "is a ZIP archive that torch.save did not write; it holds a.npy", "state_dict"),
    "cut off": (cut(save("w.pt", lambda n: n.state_dict())), "is cut off or damaged", "Copy or download it again."),
    "cut off, old layout": (
        cut(save("w.pt", lambda n: n.state_dict(), **OLD)), "is cut off or damaged", "Copy or download it again."),
    "safetensors, cut off": (cut(save_hub("model.safetensors")), "is cut off or damaged (", "Copy or download"),
    "empty": (raw("w.bin", b""), "it is empty", "Copy or download"),
    "a web page": (raw("w.bin", b"<!DOCTYPE html><html>"), "is a web page or XML", "Download the file itself"),
    "a pointer of Git LFS": (
        raw("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "is a pointer of Git LFS", "git lfs pull"),
    "Keras": (raw("w.bin", b"\x89HDF\r\n\x1a\n"), "is HDF5, as Keras writes it", "state_dict"),
    "something else": (raw("w.pt", b"\x08\x07\x12\x07pytorch"), "neither safetensors nor", "state_dict"),
    "no tensors": (
        tensors(epoch=3, lr=0.1), "holds no plain state dict: its keys are epoch (int), lr (float)", "state_dict"),
    "a tensor": (save("w.pt", lambda n: torch.zeros(3)), "it is one Tensor", "state_dict"),
    "more than tensors": (
        tensors(state_dict={"a": torch.zeros(1), "b": 3}),
        "its 'state_dict' has 'b', of type int, among", "state_dict"),
    "two networks": (
        tensors(generator={"a": torch.zeros(1)}, critic={"a": torch.zeros(1)}),
        "holds 2 state dicts, and nothing tells which is the network: generator, critic",
        "torch.load('w.pt')['generator']"),
}  # fmt: skip


@pytest.mark.parametrize(("write", "says", "hint"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_what_it_holds_and_the_way_out(write, says, hint, tmp_path):
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, create()))
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert len(str(caught.value).splitlines()) == 1
    assert "weights_only" not in caught.value.message  # torch's own text advises to run what is in the file


@pytest.mark.parametrize("old", [False, True])
def test_nothing_of_a_file_is_ever_run(old, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    state = {"state_dict": create().state_dict(), "more": Evil()}
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(RecipeError, match="open besides tensors"):
        read_weights(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as archive:
        archive.writestr("z/data.pkl", pickle.dumps(Evil()))
        archive.writestr("z/version", "3\n")
    with pytest.raises(RecipeError):
        read_weights(tmp_path / "z.pt")
    assert not (tmp_path / "was-run").exists()


def test_the_ways_out_work(tmp_path):
    """What the errors advise, done: the file is then read."""
    torch.save(lightning(create(), NAMESPACE), tmp_path / "w.ckpt")
    state = torch.load(tmp_path / "w.ckpt", weights_only=False)["state_dict"]
    torch.save(state, tmp_path / "weights.pth")
    assert equal(load(tmp_path / "weights.pth").network, create())
    torch.save(torch.jit.load(script(tmp_path, create())).state_dict(), tmp_path / "weights.pth")
    assert equal(load(tmp_path / "weights.pth").network, create())


def test_half_precision_and_safetensors_of_another_ending_are_read(tmp_path):
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in create().state_dict().items()
    }
    safetensors.torch.save_file(state, tmp_path / "model.bin", {"format": "pt"})
    network = load(tmp_path / "model.bin").network
    assert torch.equal(network.fc.weight, create().fc.weight.half().float())
