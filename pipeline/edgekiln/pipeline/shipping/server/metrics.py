"""What the server counts, and how it is told to Prometheus: text format 0.0.4.

All of it is counted on the event loop's thread, so that there is no lock.
https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from edgekiln.runtime.serving.batching.counters import BatcherCounters

__all__ = ["CONTENT_TYPE", "Histogram", "Metrics", "write_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_ENDS = ("answered", "failed", "cancelled", "expired", "refused")
Labels = Mapping[str, str]


@dataclass(slots=True)
class Histogram:
    """Counts of durations in seconds; the last bucket has no upper bound."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS_S) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(_BOUNDS_S, seconds)] += 1
        self.total += seconds


@dataclass(slots=True)
class Metrics:
    """Counters since the start.

    Attributes:
        requests: by path, method and status.
        errors: by the code that the answer told.
        seconds: of requests to ``/predict`` that were let in.
        stages: of pictures, by variant and stage: decode, wait, engine.
        reloads: by how they ended: ``ok``, ``kept``.
    """

    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: Histogram = field(default_factory=Histogram)
    stages: dict[tuple[str, str], Histogram] = field(default_factory=dict)
    reloads: Counter[str] = field(default_factory=lambda: Counter({"ok": 0, "kept": 0}))

    def observe_stage(self, variant: str, stage: str, milliseconds: float) -> None:
        """Count how long a picture took in one stage."""
        self.stages.setdefault((variant, stage), Histogram()).observe(milliseconds / 1000)


def write_metrics(
    metrics: Metrics, batchers: Mapping[str, BatcherCounters], infos: Iterable[Labels], held_bytes: int
) -> str:
    """The whole text.

    Args:
        metrics: the server's own counters.
        batchers: what each variant's batcher counted.
        infos: labels of what is served, one set for each variant.
        held_bytes: of bodies in memory now.
    """
    lines = [
        *_family("info", "gauge", "What is served.", ((labels, 1) for labels in infos)),
        *_family("requests_total", "counter", "Requests by path, method and status.",
                 (({"path": p, "method": m, "status": s}, n) for (p, m, s), n in sorted(metrics.requests.items()))),
        *_family("errors_total", "counter", "Errors by code, of requests and of single pictures.",
                 (({"code": code}, count) for code, count in sorted(metrics.errors.items()))),
        *_histograms("predict_seconds", "From the request's head to its answer.", [({}, metrics.seconds)]),
        *_histograms("picture_seconds", "Of one picture in each stage.",
                     [({"variant": v, "stage": s}, h) for (v, s), h in sorted(metrics.stages.items())]),
        *_family("pictures_total", "counter", "Pictures by how they ended.",
                 (({"variant": name, "end": end}, getattr(counters, end))
                  for name, counters in batchers.items() for end in _ENDS)),
        *_family("queue_pictures", "gauge", "Pictures that are decoded or wait for the engine.",
                 (({"variant": name}, counters.waiting) for name, counters in batchers.items())),
        *_family("batches_total", "counter", "Calls of the engine by batch size.",
                 (({"variant": name, "size": str(size)}, count)
                  for name, counters in batchers.items() for size, count in counters.batches.items())),
        *_family("body_bytes", "gauge", "Bytes of request bodies in memory.", [({}, held_bytes)]),
        *_family("reloads_total", "counter", "Reloads of the bundle: ok, or the old one was kept.",
                 (({"result": result}, count) for result, count in sorted(metrics.reloads.items()))),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield f"# HELP edgekiln_{name} {text}"
    yield f"# TYPE edgekiln_{name} {kind}"
    for labels, value in samples:
        yield _sample(name, labels, value)


def _histograms(name: str, text: str, rows: Iterable[tuple[Labels, Histogram]]) -> Iterator[str]:
    yield from _family(name, "histogram", text, ())
    for labels, histogram in rows:
        running = 0
        for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), histogram.counts, strict=True):
            running += count
            yield _sample(f"{name}_bucket", {**labels, "le": bound}, running)
        yield _sample(f"{name}_sum", labels, histogram.total)
        yield _sample(f"{name}_count", labels, running)


def _sample(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"edgekiln_{name}{{{inside}}} {value}" if inside else f"edgekiln_{name} {value}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
