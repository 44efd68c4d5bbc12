"""An engine layer by layer: what each computes in, how many MACs, how long it takes. Runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgekiln.export.audits.engine_layers.audit import Evidence
from edgekiln.export.audits.engine_layers.classification import compute_type, is_reformat, rank_layer
from edgekiln.export.audits.engine_layers.layer import EngineLayer
from edgekiln.export.audits.engine_layers.weighing import layers_by_product
from edgekiln.runtime.errors import UntrustedError

__all__ = ["EngineProfile", "LayerRow", "LayerTiming", "ToldLayers", "make_rows"]

_PRODUCT_RANK = 1


@dataclass(frozen=True, slots=True)
class LayerTiming:
    """How layers were timed, and what the whole call took beside them. Times are milliseconds of one call.

    Attributes:
        statistic: what a layer's time is over the calls: their ``median``, or the ``mean`` that the library keeps.
        calls: that were profiled.
        call_ms: of a call without a profiler, in a session of its own before, by the same statistic.
        profiled_ms: of a call with the profiler, by the same statistic.
        resolution_ms: the library tells no finer times.
    """

    statistic: Literal["median", "mean"]
    calls: int
    call_ms: float
    profiled_ms: float
    resolution_ms: float


@dataclass(frozen=True, slots=True)
class ToldLayers:
    """What a library told of an engine.

    Attributes:
        layers: in the order in which they run.
        milliseconds: of each of them, ``None`` where it was not told; empty where nothing was timed.
        timing: ``None`` where nothing was timed.
        evidence: where the layers were read.
        version: of the library; empty where it was not asked.
        batch: images of a call.
        notes: what a reader should know.
    """

    layers: tuple[EngineLayer, ...]
    evidence: Evidence
    version: str
    batch: int = 1
    milliseconds: tuple[float | None, ...] = ()
    timing: LayerTiming | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A layer, weighed and timed.

    Attributes:
        layer: as the library tells of it.
        precision: of a product, what it is computed in; of any other layer, the type of its first input.
        macs: of one image; a product that several layers compute is shared out evenly among them.
        ms: of one call; ``None`` where it is not known.
    """

    layer: EngineLayer
    precision: str
    macs: int
    ms: float | None

    @property
    def is_reformat(self) -> bool:
        """Whether it only converts a tensor's type or layout, or moves it."""
        return is_reformat(self.layer)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        layer = self.layer
        return {
            "name": layer.name,
            "kind": layer.kind,
            "nodes": list(layer.origins),
            "inputs": list(layer.inputs),
            "outputs": list(layer.outputs),
            "kernel": layer.tactic,
            "precision": self.precision,
            "macs": self.macs,
            "ms": self.ms,
            "reformat": self.is_reformat,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerRow:
        """Of ``to_dict``; raises KeyError, TypeError or ValueError where it is something else."""
        layer = EngineLayer(
            str(values["name"]),
            str(values["kind"]),
            tuple(map(str, values["nodes"])),
            tuple(map(str, values["inputs"])),
            tuple(map(str, values["outputs"])),
            None if values["kernel"] is None else str(values["kernel"]),
        )
        ms = values["ms"]
        return cls(layer, str(values["precision"]), int(values["macs"]), None if ms is None else float(ms))


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """All layers of one engine.

    Attributes:
        engine: its name: a variant's, or its file's.
        backend: that runs it.
        version: of its library; empty where that was not asked.
        machine: processor or GPU that it was asked on; empty where only a file was read.
        threads: of a CPU backend; ``None`` is the library's own choice.
        batch: images of a call.
        rows: in the order in which they run.
        evidence: where they were read.
        timing: ``None`` where they were not timed.
        notes: what a reader should know.
    """

    engine: str
    backend: str
    version: str
    machine: str
    threads: int | None
    batch: int
    rows: tuple[LayerRow, ...]
    evidence: str
    timing: LayerTiming | None
    notes: tuple[str, ...]

    @property
    def sum_ms(self) -> float | None:
        """Of all layers; ``None`` where none was timed."""
        known = [row.ms for row in self.rows if row.ms is not None]
        return sum(known) if known else None

    @property
    def macs(self) -> int:
        """Of all layers, for one image."""
        return sum(row.macs for row in self.rows)

    def slowest_first(self) -> list[LayerRow]:
        """By time; by MACs where they were not timed."""
        return sorted(self.rows, key=lambda row: (-(row.ms or 0.0), -row.macs))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with each layer's ``share_of_time`` and ``share_of_macs``, 0 to 1 or ``None``."""
        total_ms, total_macs = self.sum_ms, self.macs
        return {
            "engine": self.engine,
            "backend": self.backend,
            "version": self.version,
            "machine": self.machine,
            "threads": self.threads,
            "batch": self.batch,
            "evidence": self.evidence,
            "timing": None if self.timing is None else {**asdict(self.timing), "sum_ms": total_ms},
            "macs": total_macs,
            "notes": list(self.notes),
            "layers": [
                {
                    **row.to_dict(),
                    "share_of_time": row.ms / total_ms if total_ms and row.ms is not None else None,
                    "share_of_macs": row.macs / total_macs if total_macs else None,
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineProfile:
        """Of ``to_dict``, and of documents that have more.

        Raises:
            UntrustedError: it is something else.
        """
        try:
            timing = values["timing"]
            names = ("statistic", "calls", "call_ms", "profiled_ms", "resolution_ms")
            return cls(
                str(values["engine"]),
                str(values["backend"]),
                str(values["version"]),
                str(values["machine"]),
                None if values["threads"] is None else int(values["threads"]),
                int(values["batch"]),
                tuple(LayerRow.from_dict(row) for row in values["layers"]),
                str(values["evidence"]),
                None if timing is None else LayerTiming(**{name: timing[name] for name in names}),
                tuple(map(str, values["notes"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UntrustedError(
                f"These are no layers as edgekiln writes them: {error!r}.",
                hint="`edgekiln inspect ENGINE --layers --json` writes them.",
            ) from error


def make_rows(
    layers: Sequence[EngineLayer], milliseconds: Sequence[float | None], products: Mapping[str, int]
) -> tuple[LayerRow, ...]:
    """Weigh and time layers.

    Args:
        layers: all of an engine.
        milliseconds: of each, or empty.
        products: ONNX name of each Conv, Gemm and MatMul to its MACs for one image; empty where they are not known.
    """
    macs = dict.fromkeys(range(len(layers)), 0)
    places = {id(layer): place for place, layer in enumerate(layers)}
    for name, makers in layers_by_product(layers, products).items():
        for layer in makers:
            macs[places[id(layer)]] += products[name] // len(makers)
    times = milliseconds or [None] * len(layers)
    return tuple(
        LayerRow(layer, _precision(layer), macs[place], ms)
        for place, (layer, ms) in enumerate(zip(layers, times, strict=True))
    )


def _precision(layer: EngineLayer) -> str:
    if rank_layer(layer) <= _PRODUCT_RANK:
        return compute_type(layer)
    return layer.inputs[0] if layer.inputs else "unknown"
