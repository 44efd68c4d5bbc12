"""What learns: the network and its head, and what learns or is looked at beside them.

Holds everything with weights, the optimizer and the mode that the network is in. It draws no pictures, knows no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from edgekiln.export.to_onnx import PixelModel
from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.training.averaging import average_weights
from edgekiln.pipeline.training.backbones import Backbone, build_backbone
from edgekiln.pipeline.training.freezing import GradualUnfreezing, freeze, is_frozen
from edgekiln.pipeline.training.heads import find_head
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.optimization import make_optimizer, pull_to_pretrained, remember_pretrained
from edgekiln.pipeline.training.probe import extract_features
from edgekiln.pipeline.training.source_task import BothTasks, SourceTask
from edgekiln.pipeline.training.state import load_optimizer, optimizer_tensors
from edgekiln.pipeline.training.teacher import Teacher
from edgekiln.pipeline.training.weights import load_state
from edgekiln.pipeline.training.world import World

__all__ = ["Learner"]


class Learner:
    """The network of one training, in one process.

    Attributes:
        model: takes pixels, float32 (B, 3, H, W) of 0 to 255; ``network`` inside it takes normalized ones.
        judged: what val judges: ``model``, or one around the averaged weights.
        told: how the names of a weight file were brought to the network's, in sentences.
        forward: what a step calls, with normalized pixels of both tasks; data-parallel and compiled where asked for.
    """

    def __init__(self, job: FinetuneJob, world: World) -> None:
        self.job, self.settings, self._world = job, job.settings, world
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", world.local_rank) if on_gpu else torch.device("cpu")
        classes = len(job.contract.classes)
        torch.manual_seed(job.seed)  # before the head's random weights
        backbone = build_backbone(job.backbone, classes, job.contract.height)
        self._normalization, self.told = backbone.normalization, backbone.told
        self.model = _place(backbone, self.device, channels_last=job.settings.channels_last)
        self.network = self.model.network
        freeze(self.network, job.backbone, classes)
        self.head = find_head(self.network, classes)[1]
        self.pretrained = remember_pretrained(self.network, self.head) if job.settings.l2_sp else {}
        self.source = SourceTask(job.source, self.head.in_features, self.device) if job.source else None
        self.teacher = Teacher(job.teacher.checkpoint, job.contract, self.device) if job.teacher else None
        self._unfreezing = GradualUnfreezing(self.network, self.head, job.settings.gradual_unfreezing)
        self.reset_optimizer()
        self.average: AveragedModel | None = None
        self.source_average: AveragedModel | None = None
        self.judged = self.model
        self.start_average()
        self._alone: bool | None = None  # what BatchNorm is set to; None: not known
        self.forward: Callable[..., tuple[Tensor, Tensor]] = self._wrap()

    @property
    def uses_bf16(self) -> bool:
        """Whether a step computes in bfloat16."""
        if self.settings.precision == "auto":
            return self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.settings.precision == "bf16"

    def reset_optimizer(self) -> None:
        """A fresh optimizer, without moments."""
        more = self.source.head.parameters() if self.source else ()
        self.optimizer = make_optimizer(self.network, self.head, more, self.settings)

    def start_average(self) -> None:
        """Average from the weights of now on, where the recipe asks for averaged weights."""
        if self.settings.ema:
            self.average = average_weights(self.network, self.settings.ema)
            self.judged = PixelModel(self.average.module, self._normalization).to(self.device)
            if self.source is not None:
                self.source_average = average_weights(self.source.head, self.settings.ema)

    def _wrap(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """What a forward pass calls: both tasks, data-parallel and compiled where that is asked for."""
        both = BothTasks(self.network, self.head, self.source.head if self.source else None)
        wrapped = self._world.wrap(both)
        return torch.compile(wrapped) if self.settings.compile else wrapped

    def unfreeze(self, step: int, total: int) -> None:
        """Let go of the layers whose turn has come, where the recipe unfreezes them one after the other."""
        if self.settings.gradual_unfreezing and self._unfreezing.apply(step, total):
            self.forward = self._wrap()
            self._alone = None

    def set_training_mode(self, *, alone: bool = False) -> None:
        """Training mode; BatchNorm keeps its statistics where it is frozen, and for one picture ``alone``.

        A network that is in it already is not walked through again, which takes a percent of a small step.
        """
        if self.network.training and self._alone is alone:
            return
        self._alone = alone
        self.network.train()
        backbone = self.job.backbone
        everywhere = alone or backbone.freeze_batchnorm or backbone.freeze == "backbone"
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (everywhere or is_frozen(module)):
                module.eval()

    def move(self) -> None:
        """Take the step that the gradients tell, and follow it with the averages."""
        pull_to_pretrained(self.pretrained, self.settings.l2_sp)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        if self.source is not None and self.source_average is not None:
            self.source_average.update_parameters(self.source.head)

    def extract(self, split: PreparedSplit) -> Tensor:
        """What the head is given for each picture of a split, float32 (N, features)."""
        return extract_features(self.model, self.head, split.frames, self.device)

    def copy_judged(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights that val judges, and the source's head that belongs to them, on the CPU."""
        weights = {k: v.detach().cpu().clone() for k, v in self.judged.network.state_dict().items()}
        if self.source is None:
            return weights, {}
        if self.source_average is None:
            return weights, self.source.copy()
        head = self.source_average.module.state_dict()
        return weights, {name: value.detach().cpu().clone() for name, value in head.items()}

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Everything that a resumed training needs of it, by kind; see ``state.save_progress``."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        if self.source is not None:
            parts["source"] = self.source.copy()
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        if self.source_average is not None:
            parts["source_average"] = self.source_average.state_dict()
        return parts

    def restore(self, parts: Mapping[str, dict[str, Tensor]]) -> None:
        """Become what ``tensors`` told of."""
        load_state(self.network, parts["model"])
        if self.source is not None:
            self.source.load(parts["source"])
        if self.average is not None:
            load_state(self.average, parts["average"])
        if self.source_average is not None:
            self.source_average.load_state_dict(parts["source_average"], strict=True)
        load_optimizer(self.optimizer, parts["optimizer"])
        self.forward = self._wrap()


def _place(backbone: Backbone, device: torch.device, *, channels_last: bool) -> PixelModel:
    model = PixelModel(backbone.network, backbone.normalization)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device, memory_format=layout)  # type: ignore[call-overload, no-any-return] # torch types no memory_format here
