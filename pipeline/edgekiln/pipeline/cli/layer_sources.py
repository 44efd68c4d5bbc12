"""Engines whose layers are wanted: of a bundle, an ONNX file, an engine, or layers that were written down before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekiln.runtime.errors import EdgekilnError, EngineError, UntrustedError, UsageError

if TYPE_CHECKING:
    from edgekiln.export.audits.layers.profile import EngineProfile
    from edgekiln.export.audits.layers.profiling import ProfiledEngine
    from edgekiln.runtime.backends import Backend
    from edgekiln.runtime.bundles.bundle import Bundle

__all__ = ["LayerWish", "read_profiles"]

_MAX_JSON_BYTES = 256 * 2**20
_ENGINE_SUFFIXES = frozenset({".engine", ".plan", ".trt"})
_TOLD = "Layers are told of bundles (folders, .zip), .onnx, .engine, .plan and .trt files, and of .json files of them."


@dataclass(frozen=True, slots=True)
class LayerWish:
    """Which layers are wanted, and how.

    Attributes:
        timed: also how long each takes here.
        variants: of a bundle, these alone.
        backend: of an ONNX file: which library is asked.
        graph: of an engine file: the ONNX file that it was built from.
        threads: of CPU backends.
        trusted_keys: of which one must have signed a bundle.
    """

    timed: bool = False
    variants: tuple[str, ...] = ()
    backend: Backend | None = None
    graph: Path | None = None
    threads: int | None = None
    trusted_keys: Sequence[Path] | None = None


def read_profiles(path: Path, wish: LayerWish) -> list[EngineProfile]:
    """The engines of a path, each layer by layer.

    Raises:
        UsageError: nothing there, nothing whose layers are told, or a wish that does not fit it.
        UntrustedError: it is damaged.
        EnvironmentProblem, ResourceError: as for ``profile_engine``; of a bundle, where none of its engines is told.
    """
    if path.is_dir() or path.suffix.lower() == ".zip":
        from edgekiln.runtime.bundles.bundle import open_bundle

        _refuse(path, "is a bundle", backend=wish.backend, onnx=wish.graph)
        return _of_bundle(open_bundle(path, trusted_keys=wish.trusted_keys), wish)
    if not path.is_file():
        raise UsageError(f"There is no file or folder {path}.", hint=_TOLD, path=path)
    _refuse(path, "is no bundle", variant=wish.variants, trusted_key=wish.trusted_keys)
    if path.suffix == ".json":
        _refuse(path, "was written before", time=wish.timed, backend=wish.backend, threads=wish.threads)
        return _of_document(path, wish)
    return [_profile(_of_file(path, wish), wish, path)]


def _refuse(path: Path, what: str, **values: Any) -> None:
    """Refuse options that mean nothing for this path."""
    if given := [f"--{name.replace('_', '-')}" for name, value in values.items() if value]:
        raise UsageError(f"{', '.join(given)} cannot be used here: {path} {what}.", path=path)


def _of_file(path: Path, wish: LayerWish) -> ProfiledEngine:
    from edgekiln.export.audits.layers.profiling import ProfiledEngine
    from edgekiln.runtime.backends import ONNX_BACKENDS

    data = path.read_bytes()
    if path.suffix == ".onnx":
        _refuse(path, "is an ONNX file itself", onnx=wish.graph)
        backend = wish.backend or "onnxruntime-cpu"
        if backend not in ONNX_BACKENDS:
            raise UsageError(f"{backend} runs no ONNX file: {path}.", hint="Give its engine.", path=path)
        _check_graph(data, path)
        return ProfiledEngine(path.stem, backend, data, threads=wish.threads)
    if path.suffix not in _ENGINE_SUFFIXES:
        raise UsageError(
            f"{path} is of no kind whose layers are told (ending {path.suffix or 'none'}).",
            hint=_TOLD,
            path=path,
        )
    _refuse(path, "is an engine, whose header names its library", backend=wish.backend, threads=wish.threads)
    return ProfiledEngine(path.stem, _flavour(data, path), data, _read_graph(wish.graph))


def _flavour(data: bytes, path: Path) -> Backend:
    from edgekiln.runtime.backends.engine_header import HEADER_BYTES, read_engine_header

    try:
        return read_engine_header(data[:HEADER_BYTES]).flavour
    except EngineError as error:  # the library sees bytes alone
        raise EngineError(f"{path}: {error.message}", hint=error.hint, path=path) from error


def _read_graph(path: Path | None) -> bytes | None:
    if path is None:
        return None
    if not path.is_file():
        raise UsageError(f"There is no ONNX file {path}.", path=path)
    data = path.read_bytes()
    _check_graph(data, path)
    return data


def _check_graph(data: bytes, path: Path) -> None:
    from edgekiln.runtime.onnx_files.scan import check_onnx

    try:
        check_onnx(data)
    except EngineError as error:  # the scan sees bytes alone
        raise UntrustedError(
            f"{path} is no ONNX file that may be opened: {error.message}",
            hint="Copy it again, or export it again.",
            path=path,
        ) from error


def _of_bundle(bundle: Bundle, wish: LayerWish) -> list[EngineProfile]:
    """Of each variant; one that cannot be asked here is told of, and the others are not lost for it."""
    engines = list(_engines_of(bundle, wish))
    found: list[EngineProfile] = []
    problems: list[EdgekilnError] = []
    for engine in engines:
        try:
            found.append(_profile(engine, wish, bundle.path))
        except EdgekilnError as error:
            problems.append(error)
            found.append(_untold(engine, error))
    if len(problems) == len(found) and problems:
        raise problems[0]
    return found


def _engines_of(bundle: Bundle, wish: LayerWish) -> Iterator[ProfiledEngine]:
    from edgekiln.export.audits.layers.profiling import ProfiledEngine
    from edgekiln.runtime.backends import CPU_BACKENDS

    names = [variant.name for variant in bundle.variants]
    if unknown := [name for name in wish.variants if name not in names]:
        raise UsageError(
            f"{bundle.path} has no variant {', '.join(unknown)}; it has {', '.join(names)}.", path=bundle.path
        )
    chosen = [v for v in bundle.variants if v.files and (not wish.variants or v.name in wish.variants)]
    if not chosen:
        raise UsageError(
            f"{bundle.path} holds no engine of {', '.join(wish.variants or names)}.",
            hint="`edgekiln build` makes engines on the machine that will run them.",
            path=bundle.path,
        )
    for variant in chosen:
        graph = None if variant.source is None else bundle.read(variant.source)
        for name in variant.files:
            shown = variant.name if len(variant.files) == 1 else f"{variant.name}: {name}"
            threads = wish.threads if variant.backend in CPU_BACKENDS else None
            products = variant.figures.get("products") or None
            yield ProfiledEngine(shown, variant.backend, bundle.read(name), graph, threads, products)


def _profile(engine: ProfiledEngine, wish: LayerWish, path: Path) -> EngineProfile:
    from edgekiln.export.audits.layers.profiling import profile_engine
    from edgekiln.runtime.bundles.machine_kind import name_machine

    try:
        return profile_engine(engine, timed=wish.timed, machine=name_machine(engine.backend))
    except EngineError as error:  # the library sees bytes alone
        raise EngineError(f"{path}: {error.message}", hint=error.hint, path=path) from error


def _untold(engine: ProfiledEngine, error: EdgekilnError) -> EngineProfile:
    from edgekiln.export.audits.layers.profile import EngineProfile

    why = f"Its layers could not be told here: {error}"
    return EngineProfile(engine.name, engine.backend, "", "", None, 1, (), "none", None, (why,))


def _of_document(path: Path, wish: LayerWish) -> list[EngineProfile]:
    """Of ``inspect --layers --json``, of a ``report.json``, or of TensorRT (``trtexec --exportLayerInfo``)."""
    from edgekiln.export.audits.layers.profile import EngineProfile
    from edgekiln.export.audits.layers.recorded import profile_document

    if path.stat().st_size > _MAX_JSON_BYTES:
        raise UntrustedError(f"{path} is larger than any list of layers.", path=path)
    try:
        text = path.read_text("utf-8")
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UntrustedError(f"{path} is no JSON that can be read: {error}.", path=path) from error
    try:
        if (profiles := _find_profiles(document)) is not None:
            return [EngineProfile.from_dict(values) for values in profiles]
        return [profile_document(path.stem, text, _read_graph(wish.graph))]
    except (UntrustedError, EngineError) as error:
        raise UntrustedError(f"{path}: {error.message}", hint=error.hint, path=path) from error


def _find_profiles(document: Any) -> list[Any] | None:
    """``None`` where the document is none of edgekiln's."""
    if not isinstance(document, dict):
        return None
    if isinstance(document.get("benchmark"), dict):
        document = document["benchmark"].get("layers")
        if not isinstance(document, dict):
            raise UntrustedError(
                "This report has no layers.",
                hint="`edgekiln bench` writes them, since reports of version 1.2.",
            )
    profiles = document.get("profiles")
    return profiles if isinstance(profiles, list) else None
