"""Which variant of a bundle runs here, and why that one: chosen, checked, opened. It knows nothing of predictions."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekiln.runtime.arguments import check_strings, check_threads, check_whole_number
from edgekiln.runtime.backends import ONNX_BACKENDS, SLOT_BACKENDS, open_session
from edgekiln.runtime.bundles.bundle import Bundle, check_usable, open_bundle
from edgekiln.runtime.bundles.judged_with import find_versions, tell_other_kind, tell_other_version
from edgekiln.runtime.bundles.machine_kind import read_kind
from edgekiln.runtime.bundles.manifest import PREFERENCE, VariantRecord
from edgekiln.runtime.bundles.source import FRESH_COPY
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import BundleError, EnvironmentProblem, ResourceError, UsageError
from edgekiln.runtime.onnx_files.metadata import CONTRACT_DIGEST_KEY, read_metadata
from edgekiln.runtime.serving.loaded import LoadedModel
from edgekiln.runtime.serving.memory import give_back_memory
from edgekiln.runtime.serving.ordering import order_by_speed
from edgekiln.runtime.serving.prediction import Selection
from edgekiln.runtime.serving.self_test import ask_canaries

if TYPE_CHECKING:
    from edgekiln.runtime.bundles.keys import KeySource

__all__ = ["LoadOptions", "load_model"]

_WHERE_ENGINES_ARE_BUILT = "`edgekiln build` makes TensorRT engines on the machine that runs them."

MAX_SLOTS = 64
"""Each has buffers and contexts of its own; more than a few only cost memory."""

_DEVICE = re.compile(r"cpu|cuda(:(0|[1-9][0-9]{0,3}))?", re.ASCII)

_log = logging.getLogger("edgekiln.runtime")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What ``load`` was asked for; a reload asks for the same. ``load`` tells what each means.

    Raises:
        UsageError: a wrong argument, or ``allow_unverified`` without a variant's name.
    """

    variant: str | None = None
    device: str | None = None
    threads: int | None = None
    allow_unverified: bool = False
    trusted_keys: Sequence[KeySource] | None = None
    fast_decode: Literal["auto"] | bool = "auto"
    allow_operators: Collection[str] = ()
    slots: int | None = None
    wait: Literal["spin", "blocking"] | None = None
    self_test: bool = True

    def __post_init__(self) -> None:
        for name in ("trusted_keys", "allow_operators"):  # a generator would be empty for the reload
            if isinstance(value := getattr(self, name), Iterator):
                object.__setattr__(self, name, tuple(value))
        if self.device is not None and not (isinstance(self.device, str) and _DEVICE.fullmatch(self.device)):
            raise UsageError(
                f"Unknown device {self.device!r}; known: cpu, cuda, cuda:0, cuda:1 and so on.",
                hint="Leave the device out to take the engine that `load` prefers.",
            )
        check_threads(self.threads)
        check_strings("allow_operators", self.allow_operators)
        if self.slots is not None:
            check_whole_number("slots", self.slots, at_most=MAX_SLOTS)
        if self.wait not in (None, "spin", "blocking"):
            raise UsageError(f"Unknown wait {self.wait!r}; known: spin, blocking.")
        if not isinstance(self.self_test, bool):
            raise UsageError(f"Unknown self_test {self.self_test!r}; known: True, False.")
        if not (self.fast_decode == "auto" or isinstance(self.fast_decode, bool)):
            raise UsageError(f"Unknown fast_decode {self.fast_decode!r}; known: 'auto', True, False.")
        if self.allow_unverified and self.variant is None:
            raise UsageError(
                "allow_unverified needs a variant by name: only engines that passed are chosen automatically.",
                hint="Name it with variant=... (--variant NAME); `edgekiln inspect BUNDLE` lists them.",
            )

    @property
    def device_kind(self) -> str | None:
        """``cpu``, ``cuda`` or ``None``, as variants tell theirs."""
        return None if self.device is None else self.device.partition(":")[0]

    @property
    def device_number(self) -> int:
        """Of the GPU; 0 where none was asked for."""
        return int((self.device or "").partition(":")[2] or 0)


def load_model(path: str | os.PathLike[str], options: LoadOptions, *, thorough: bool = False) -> LoadedModel:
    """Open a bundle and one of its engines; ``thorough`` asks it all canaries. Raises what ``load`` raises."""
    bundle = open_bundle(path, trusted_keys=options.trusted_keys)
    if options.variant is not None:
        chosen = bundle.variant(options.variant)
        _check_loadable(chosen, options.device_kind, options.allow_unverified)
        if chosen.backend not in SLOT_BACKENDS and (options.slots is not None or options.wait is not None):
            raise UsageError(
                f"Variant {chosen.name!r} runs on {chosen.backend}, which has no slots and no choice of waiting.",
                hint="Leave slots and wait out, or take a variant of TensorRT.",
            )
        return _open(bundle, chosen, "asked for by name", options, thorough)
    return _load_preferred(bundle, options, thorough)


def _check_loadable(variant: VariantRecord, device: str | None, allow_unverified: bool) -> None:
    check_usable(variant, allow_unverified=allow_unverified)
    if device is not None and variant.device != device:
        raise UsageError(
            f"Variant {variant.name!r} runs on {variant.backend}, not on {device}.",
            hint="Leave the device out, or take another variant.",
        )


def _load_preferred(bundle: Bundle, options: LoadOptions, thorough: bool) -> LoadedModel:
    device = options.device_kind
    passed = [v for v in bundle.variants if v.deployable and device in {None, v.device}]
    if not passed:
        raise _nothing_passed(bundle, device)
    skipped: list[str] = []
    documented = sorted(passed, key=lambda v: PREFERENCE.index((v.backend, v.precision)))
    for choice in order_by_speed(documented, options.device_number):
        candidate, asked = choice.variant, options.threads
        other = (
            [] if choice.threads is None or asked in {None, choice.threads} else [f"{asked} were asked for"]
        )
        reason = "; ".join([choice.reason, *other, *skipped])
        try:
            chosen = replace(options, threads=asked or choice.threads)
            return _open(bundle, candidate, reason, chosen, thorough)
        except (EnvironmentProblem, ResourceError) as problem:
            _log.info("variant %s cannot run here: %s", candidate.name, problem)
            skipped.append(f"{candidate.name} cannot run here ({problem.message})")
    raise EnvironmentProblem(
        f"Nothing in {bundle.path} can run here: {'; '.join(skipped)}.",
        hint="`edgekiln doctor BUNDLE` tells what each engine lacks"
        + ("; without the device, an engine for the CPU may be taken." if device else "."),
        path=bundle.path,
    )


def _nothing_passed(bundle: Bundle, device: str | None) -> UsageError:
    candidates = [v for v in bundle.variants if device in {None, v.device}]
    if device and not candidates:
        there = ", ".join(f"{v.name} on {v.backend}" for v in bundle.variants)
        return UsageError(
            f"{bundle.path} has no variant for {device}; it has: {there}.",
            hint="Leave the device out, or make a variant for it: add one to the recipe and run it again.",
            path=bundle.path,
        )
    verdicts = ", ".join(f"{v.name}: {v.verdict}" for v in candidates)
    if any(v.file for v in candidates):
        hint = "Name one (variant=, --variant) with allow_unverified=True (--allow-unverified) to load it all the same."
    else:
        hint = _WHERE_ENGINES_ARE_BUILT
    return UsageError(
        f"No variant of {bundle.path} passed its gate{f' for {device}' if device else ''} ({verdicts}).",
        hint=hint,
        path=bundle.path,
    )


def _open(
    bundle: Bundle, variant: VariantRecord, reason: str, options: LoadOptions, thorough: bool
) -> LoadedModel:
    fast = bool(options.fast_decode) and variant.fast_decode.allowed
    if options.fast_decode is True and not fast:
        raise UsageError(
            f"Variant {variant.name!r} may not decode fast: {variant.fast_decode.reason}",
            hint="fast_decode='auto' takes the plain path there; `establish_agreement` shows it on your own pictures.",
            path=bundle.path,
        )
    engines = [bundle.read(name) for name in variant.files]
    if variant.backend in ONNX_BACKENDS:
        _check_exported_for(bundle.contract, engines, bundle.path / str(variant.file))
    in_slots = variant.backend in SLOT_BACKENDS  # one that was not asked for by name runs without them
    session = open_session(
        variant.backend,
        engines,
        threads=options.threads,
        allow_operators=frozenset(options.allow_operators),
        device=options.device_number,
        slots=options.slots if in_slots else None,
        wait=options.wait if in_slots else None,
        keep_compiled=True,
    )
    notice = _tell_what_is_other(bundle, variant, options.device_number)
    if notice:
        _log.warning("variant %s was %s", variant.name, notice)
    selection = Selection(variant.name, variant.backend, variant.precision.value, reason, notice)
    model = LoadedModel(session, bundle.contract, selection, fast_decode=fast)
    if options.self_test:
        ask_canaries(model, variant, thorough=thorough)
    engines.clear()
    give_back_memory()  # what reading the file and asking made pictures took for a moment
    return model


def _tell_what_is_other(bundle: Bundle, variant: VariantRecord, device: int) -> str:
    """What is other here than where an engine that is open now was judged; empty where nothing is."""
    if variant.kind is None:
        return tell_other_version(variant.backend, find_versions(bundle.manifest, variant.figures))
    return tell_other_kind(variant.kind, read_kind(variant.backend, device))


def _check_exported_for(contract: Contract, models: Sequence[bytes], path: Path) -> None:
    """An ONNX file carries the digest of the contract that it was exported with; one that was made elsewhere, none.

    TensorRT's engines carry nothing of the kind: for them the manifest's word is all there is.
    """
    for model in models:
        if read_metadata(model, CONTRACT_DIGEST_KEY) not in (None, contract.digest):
            raise BundleError(
                f"{path} was exported for another contract than the manifest's: other classes, another size, or "
                "another way to prepare pictures.",
                hint=FRESH_COPY,
                path=path,
            )
