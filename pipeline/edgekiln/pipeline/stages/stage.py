"""The nouns of a plan: a stage of one recipe's run, and what all stages of a kind have in common."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from edgekiln.pipeline.recipe import DataSettings, Recipe, VariantSettings
from edgekiln.pipeline.workspace.data_memory import DataMemory
from edgekiln.pipeline.workspace.stage_files import StageContext

__all__ = ["EVERYTHING", "Listed", "Stage", "StageKind", "Subject", "Wish"]

EVERYTHING = ("everything before",)
"""What a kind reads that takes the folders of all earlier stages."""

Subject: TypeAlias = VariantSettings | DataSettings | None
"""What a single stage of a kind is about: a variant, the pictures of a task, or the whole run."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of one recipe's run.

    Attributes:
        inputs: names of the stages whose output it reads.
        settings: everything else that determines its output, as JSON values.
        tools: distributions whose versions matter.
        resumable: whether an interrupted attempt is continued.
        revision: raised when the code of the stage changes what it writes.
        purpose: what it does, in a few words.
        makes: files that it leaves where all goes well.
        listed: what a stage that lists pictures found.
    """

    name: str
    inputs: tuple[str, ...]
    settings: Mapping[str, Any]
    tools: tuple[str, ...]
    work: Callable[[StageContext], None]
    resumable: bool = False
    revision: int = 1
    purpose: str = ""
    makes: tuple[str, ...] = ()
    listed: Listed | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """What a look at a source tells before anything is decoded.

    Attributes:
        notices: sentences on how it was read and what was left out.
        memory: tells this data set from others; see ``DataMemory``.
    """

    notices: tuple[str, ...]
    memory: DataMemory


@dataclass(frozen=True, slots=True)
class Wish:
    """A recipe, and what was found out about its sources while it is planned.

    Attributes:
        fingerprints: of the sources that were looked at, by the keys that list them; filled while planning.
        listed: what else was found, by the same keys; nothing of a source whose fingerprint was handed in.
    """

    recipe: Recipe
    fingerprints: dict[str, str] = field(default_factory=dict)
    listed: dict[str, Listed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageKind:
    """What all stages of one kind have in common.

    Attributes:
        name: of the stage, or of its kind where each variant has one: that of the variant ``int8`` is ``NAME.int8``.
        purpose: what it does, in a few words.
        reads: kinds of stages whose output it reads, where the recipe has them; or ``EVERYTHING``.
        ignores: kinds that it does not read although it reads ``EVERYTHING``.
        makes: files that it leaves where all goes well, as patterns of names.
        calls: ``module:function`` that does the work, with the context and, where there is one, the subject.
        subjects: one for each stage of this kind that a recipe has.
        settings: what else determines the output; see ``Stage``.
        tools: distributions whose versions matter; see ``Stage``.
        resumable: whether an interrupted attempt is continued.
        revision: see ``Stage``.
        listed: see ``Stage``; asked for after ``settings``.
    """

    name: str
    purpose: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    calls: str
    subjects: Callable[[Recipe], Sequence[Subject]]
    settings: Callable[[Wish, Any], Mapping[str, Any]]
    tools: Callable[[Recipe, Any], tuple[str, ...]]
    resumable: Callable[[Any], bool] = lambda _: False
    revision: int = 1
    ignores: tuple[str, ...] = ()
    listed: Callable[[Wish, Any], Listed | None] = lambda wish, subject: None

    def stage_name(self, subject: Subject) -> str:
        """Of the stage about ``subject``."""
        return f"{self.name}.{subject.name}" if isinstance(subject, VariantSettings) else self.name

    def make_work(self, subject: Subject) -> Callable[[StageContext], None]:
        """What the stage about ``subject`` does; its module is imported when it does it."""

        def work(context: StageContext) -> None:
            module, _, function = self.calls.partition(":")
            about = () if subject is None else (subject,)
            getattr(importlib.import_module(module), function)(context, *about)

        return work
