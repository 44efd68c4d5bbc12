"""The variants that are served, each with its batcher; loaded together, and reloaded together or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edgekiln.runtime.bundles.bundle import Bundle, open_bundle
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.serving.batching.batcher import Batcher
from edgekiln.runtime.serving.classifier import Classifier, serve_model
from edgekiln.runtime.serving.selecting import LoadOptions, load_model

__all__ = ["MAX_VARIANTS", "Batching", "Engines", "Served", "describe_bundle"]

MAX_VARIANTS = 2
"""As many as the page shows side by side."""

Snapshot = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Batching:
    """What each batcher is made with; ``Batcher`` tells what each means."""

    max_batch: int = 8
    max_wait_us: float = 1000
    max_queue: int = 64


@dataclass(frozen=True, slots=True)
class Served:
    """One variant. Its name stays over reloads where it was asked for by name."""

    classifier: Classifier
    batcher: Batcher

    @property
    def name(self) -> str:
        """Of the variant that answers now."""
        return self.classifier.variant.name


class Engines:
    """Opens a bundle and keeps one classifier and batcher for each variant. Use it as a context manager."""

    def __init__(self, path: Path, names: Sequence[str], options: LoadOptions, batching: Batching) -> None:
        """Load.

        Args:
            path: the bundle.
            names: of variants, at most two; none takes what ``load`` prefers.
            options: as ``load`` takes them.
            batching: of each variant.

        Raises:
            UsageError: too many names, or one twice.
            EdgekilnError: whatever ``load`` raises.
        """
        if len(names) > MAX_VARIANTS or len(set(names)) < len(names):
            raise UsageError(
                f"Up to {MAX_VARIANTS} different variants are served, got {', '.join(names)}.",
                hint="Start a second server on another port, or serve many models with Triton (docs/triton.md).",
            )
        self.path = path
        self._options = [replace(options, variant=name) for name in names] or [options]
        self.bundle = open_bundle(path, trusted_keys=options.trusted_keys)
        self._closing = ExitStack()
        with ExitStack() as loaded:
            served = []
            for each in self._options:
                classifier = loaded.enter_context(serve_model(load_model(path, each), each))
                _warm_up(classifier)
                served.append(Served(classifier, loaded.enter_context(_make_batcher(classifier, batching))))
            self.served = tuple(served)
            self._closing = loaded.pop_all()

    def find(self, name: str | None) -> Served:
        """The variant of that name, or the first one; raises UsageError."""
        for served in self.served:
            if name in (None, served.name):
                return served
        known = ", ".join(served.name for served in self.served)
        raise UsageError(
            f"Variant {name!r} is not served; there is: {known}.", hint="Leave it out, or take one of these."
        )

    def reload(self) -> None:
        """Load the bundle again and swap all variants, or none: where this raises, the old ones go on.

        Every new engine is asked all of the bundle's made pictures, and is run, before any is swapped.
        """
        with ExitStack() as fresh:
            bundle = open_bundle(self.path, trusted_keys=self._options[0].trusted_keys)
            loaded = []
            for each in self._options:
                classifier = fresh.enter_context(
                    serve_model(load_model(self.path, each, thorough=True), each)
                )
                _warm_up(classifier)
                loaded.append(classifier)
            for served, classifier in zip(self.served, loaded, strict=True):
                served.classifier.adopt(classifier)  # refuses other classes: at the first one, or at none
            self.bundle = bundle

    def describe(self) -> dict[str, Any]:
        """What is served, for the page and for programs."""
        contract = self.served[0].classifier.contract
        return {
            "bundle": {"name": self.bundle.name, "digest": self.bundle.digest},
            "classes": list(contract.classes),
            "frame": {"height": contract.height, "width": contract.width},
            "variants": [self._describe_variant(served) for served in self.served],
            "others": [v.name for v in self.bundle.variants
                       if v.deployable and v.name not in {served.name for served in self.served}],
        }  # fmt: skip

    def _describe_variant(self, served: Served) -> dict[str, Any]:
        chosen = (
            served.classifier.variant
        )  # while a reload swaps, perhaps one that the bundle here does not have
        verdicts = {variant.name: variant.verdict for variant in self.bundle.variants}
        return {
            "name": chosen.name,
            "backend": chosen.backend,
            "precision": chosen.precision,
            "verdict": verdicts.get(chosen.name, ""),
            "reason": chosen.reason,
            "notice": chosen.notice,
        }

    def read_snapshot(self) -> Snapshot | None:
        """What shows that the bundle's files changed; ``None`` while there is no bundle, as between two copies."""
        return _read_snapshot(self.path)

    def __enter__(self) -> Engines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Answer what waits, then close the engines."""
        self._closing.close()


def _warm_up(classifier: Classifier) -> None:
    """Engine and decoder: the first picture of a process would wait for Pillow's own modules."""
    from PIL import Image

    grey = io.BytesIO()
    Image.new("RGB", (64, 64), (127, 127, 127)).save(grey, "JPEG")
    for _ in range(3):
        classifier.predict(grey.getvalue())


def _make_batcher(classifier: Classifier, batching: Batching) -> Batcher:
    return Batcher(
        classifier,
        max_batch=batching.max_batch,
        max_wait_us=batching.max_wait_us,
        max_queue=batching.max_queue,
    )


def _read_snapshot(path: Path) -> Snapshot | None:
    try:
        entries = list(os.scandir(path)) if path.is_dir() else [path]
        found = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return None
    return tuple(sorted((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in found))


def describe_bundle(bundle: Bundle) -> str:
    """Name and the beginning of its digest, as a person tells two apart."""
    return f"{bundle.name} ({bundle.digest[:12]})"
