"""The source task of the combined loss J = alpha * J_source + beta * J_target.

While a network learns the target task, batches of the source task keep it from forgetting what it knew: both losses
are cross-entropies, through one backbone and a head of their own each (multi-task learning with hard parameter
sharing, Caruana 1997, doi:10.1023/A:1007379606734). The source's head is used in training alone and never ships.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.training.weight_files import StoredWeights
from edgekiln.runtime.errors import DataError, RecipeError

__all__ = ["BothTasks", "SourceData", "SourceTask", "check_labels", "read_source_head"]


@dataclass(frozen=True, slots=True)
class SourceData:
    """What the source task trains on.

    Attributes:
        alpha: weight of its loss, above 0.
        classes: its labels; none of them may be one of the target's.
        head: weight (classes, features) and bias (classes,) of a trained head; ``None`` starts from a linear probe.
    """

    train: PreparedSplit
    val: PreparedSplit
    classes: tuple[str, ...]
    alpha: float
    head: tuple[Tensor, Tensor] | None = None


def check_labels(source: tuple[str, ...], target: tuple[str, ...]) -> None:
    """Raise DataError where both tasks have a class of the same name: it would be learned under two heads."""
    shared = sorted(set(source) & set(target))
    if shared:
        raise DataError(
            f"Source and target task both have {'a class' if len(shared) == 1 else 'classes'} {', '.join(shared[:5])}.",
            hint="Rename them in one of the two, or put the pictures into one task.",
        )


def read_source_head(stored: StoredWeights, head: str, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the checkpoint's own head, for ``source_task.head = "keep"``.

    Raises:
        RecipeError: the file is no checkpoint of edgekiln, or of a run with other classes.
    """
    if stored.contract is None:
        raise RecipeError(
            f"{stored.path} does not say which classes its head has, so it cannot be the source task's.",
            hint="source_task.head = 'fresh' starts one from a linear probe.",
            path=stored.path,
        )
    if stored.contract.classes != classes:
        raise RecipeError(
            f"The head in {stored.path.name} knows {_list(stored.contract.classes)}; the source task has "
            f"{_list(classes)}.",
            hint="source_task.head = 'fresh' starts one from a linear probe.",
            path=stored.path,
        )
    return stored.tensors[f"{head}.weight"], stored.tensors[f"{head}.bias"]


def _list(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")


class BothTasks(nn.Module):
    """One network with the target's head, and the source's beside it, in one call: what processes that train together
    and compilers need to see as a whole."""

    def __init__(self, network: nn.Module, head: nn.Linear, source_head: nn.Linear | None) -> None:
        super().__init__()
        self.network, self.source_head = network, source_head
        self._head = [head]  # in a list: it is the network's own, and no second child

    def forward(self, images: Tensor, source_images: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Normalized pictures (B, 3, H, W) of either task to logits (B, classes) of either."""
        logits: Tensor = self.network(images)
        if source_images is None or self.source_head is None:
            return logits, None
        features = _run_to_head(self.network, self._head[0], source_images)
        return logits, self.source_head(features)


def _run_to_head(network: nn.Module, head: nn.Linear, images: Tensor) -> Tensor:
    """What the head sees of normalized images (B, 3, H, W), with its graph: (B, features)."""
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        network(images)
    finally:
        hook.remove()
    return seen[0]


class SourceTask:
    """The source's head beside a network that is being fine-tuned."""

    def __init__(self, data: SourceData, features: int, device: torch.device) -> None:
        self.data = data
        self.head = nn.Linear(features, len(data.classes)).to(device)
        if data.head is not None:
            self.load({"weight": data.head[0], "bias": data.head[1]})

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the head's weight and bias."""
        self.head.load_state_dict(dict(tensors), strict=True)

    def copy(self) -> dict[str, Tensor]:
        """The head's weight and bias as they are now, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.head.state_dict().items()}

    @torch.inference_mode()
    def top1(self, extract: Callable[[PreparedSplit], Tensor]) -> float:
        """Accuracy on the source's val split; ``extract`` gives what the head sees, float64 (N, features)."""
        features = extract(self.data.val).to(self.head.weight)
        right = self.head(features).argmax(1).cpu() == torch.from_numpy(self.data.val.labels)
        return float(right.float().mean())
