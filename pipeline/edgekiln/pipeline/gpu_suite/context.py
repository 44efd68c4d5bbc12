"""What a run of the suite is asked for, and a run that is going on. Knows no part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekiln.pipeline.gpu_suite.isolation import Outcome
from edgekiln.pipeline.gpu_suite.plan import DEFAULT_BUDGET_S

__all__ = ["BATCHES", "DEFAULT_MODELS", "FAMILIES", "NOT_WANTED", "Run", "SuiteOptions"]

FAMILIES = ("tests", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx", "layers", "dynamic", "soak")
DEFAULT_MODELS = ("lite0", "resnet18", "mobilenetv3", "vit")
BATCHES = (1, 64)
NOT_WANTED = "left out by --only"
_THOROUGH_FROM_S = 3600.0


@dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What to run.

    Attributes:
        models: names in ``networks.MODELS``, the most interesting first.
        given: folder of files made elsewhere, or ``None``.
        quick: fewer rounds, and torch.compile's default mode; so is whatever has less than an hour.
        families: parts and contenders wanted, of ``FAMILIES``.
        budget_s: seconds for everything.
        limits_s: seconds that a part may take, by the first word of its name.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    batches: tuple[int, ...] = BATCHES
    given: Path | None = None
    quick: bool = False
    families: tuple[str, ...] = FAMILIES
    budget_s: float = DEFAULT_BUDGET_S
    limits_s: Mapping[str, float] = field(
        default_factory=lambda: {
            "machine": 60,
            "inputs": 120,
            "layers": 90,
            "tests": 900,
            "graphs": 1200,
            "engines": 3600,
            "rtx-engines": 300,
            "dynamic": 900,
            "soak": 180,
            "bench": 1800,
            "step": 600,
        }
    )

    @property
    def is_quick(self) -> bool:
        """Whether measurements are short."""
        return self.quick or self.budget_s < _THOROUGH_FROM_S


@dataclass(slots=True)
class Run:
    """A run that is going on.

    Attributes:
        work: folder of files that are made.
        say: told what a person should read.
        save: told after each part that there is more to keep.
        given: folder of files made elsewhere, joined and checked; ``None`` where there are none.
        parts: what became of each part that is over.
        current: name of the one that is running.
    """

    options: SuiteOptions
    work: Path
    say: Callable[[str], None]
    save: Callable[[Run], None] = lambda run: None
    given: str | None = None
    plan: list[dict[str, Any]] = field(default_factory=list)
    parts: dict[str, Outcome] = field(default_factory=dict)
    current: str | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.options.budget_s - (time.monotonic() - self.began)

    @property
    def folders(self) -> list[str | None]:
        """Where files may lie, the given ones first."""
        return [self.given, str(self.work)]

    def begin(self, name: str) -> None:
        """A part is about to run."""
        self.current = name
        self.save(self)

    def add(self, name: str, outcome: Outcome) -> None:
        """Keep what became of a part."""
        self.parts[name], self.current = outcome, None
        reason = "" if outcome.reason is None else f": {outcome.reason.splitlines()[0][:200]}"
        self.say(f"{name}: {outcome.state}{reason} ({outcome.seconds:.0f} s)")
        self.save(self)

    def common(self, models: tuple[str, ...]) -> dict[str, Any]:
        """Arguments that several parts take."""
        return {"models": models, "given": self.given, "work": str(self.work), "folders": self.folders}

    def wants(self, *families: str) -> bool:
        """Whether any of these families was asked for."""
        return any(family in self.options.families for family in families)
