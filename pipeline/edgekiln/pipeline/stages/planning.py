"""From a recipe to its stages, each after those that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgekiln.pipeline.recipe import Recipe, VariantSettings
from edgekiln.pipeline.stages.kinds import KINDS, TRAINING
from edgekiln.pipeline.stages.stage import EVERYTHING, Stage, StageKind, Subject, Wish

__all__ = ["plan_stages", "plan_training", "stage_names"]


def stage_names(recipe: Recipe) -> list[str]:
    """Names of all stages in their order; looks at the recipe only."""
    return [kind.stage_name(subject) for kind in KINDS for subject in kind.subjects(recipe)]


def plan_stages(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe, each after those that it reads."""
    return list(_plan(KINDS, Wish(recipe)))


def plan_training(recipe: Recipe, fingerprints: dict[str, str] | None = None) -> list[Stage]:
    """The stages that train and judge the PyTorch model; nothing is exported.

    Args:
        recipe: the wish.
        fingerprints: of the sources that earlier calls looked at; filled here. A caller that plans many runs over the
            same pictures hands in one dict, and each source is looked at once.
    """
    kinds = [kind for kind in KINDS if kind.name in TRAINING]
    return list(_plan(kinds, Wish(recipe, {} if fingerprints is None else fingerprints)))


def _plan(kinds: Sequence[StageKind], wish: Wish) -> Iterator[Stage]:
    before: list[tuple[StageKind, Subject]] = []
    for kind in kinds:
        planned = [(kind, subject) for subject in kind.subjects(wish.recipe)]
        for _, subject in planned:
            settings = kind.settings(wish, subject)
            yield Stage(
                kind.stage_name(subject),
                tuple(_find_inputs(kind, subject, before)),
                settings,
                kind.tools(wish.recipe, subject),
                kind.make_work(subject),
                resumable=kind.resumable(subject),
                revision=kind.revision,
                purpose=kind.purpose,
                makes=kind.makes,
                listed=kind.listed(wish, subject),
            )
        before += planned


def _find_inputs(
    kind: StageKind, subject: Subject, before: Sequence[tuple[StageKind, Subject]]
) -> Iterator[str]:
    """Names of the stages that it reads: of the whole run, and of the same variant."""
    if kind.reads == EVERYTHING:
        yield from (
            earlier.stage_name(about) for earlier, about in before if earlier.name not in kind.ignores
        )
        return
    for wanted in kind.reads:
        for earlier, about in before:
            other_variant = isinstance(about, VariantSettings) and about is not subject
            if earlier.name == wanted and not other_variant:
                yield earlier.stage_name(about)
