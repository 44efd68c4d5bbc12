"""A bundle on this machine: whether it is whole, and which of its engines load, and why the others do not."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgekiln.pipeline.doctor.child import Answer, ask_child
from edgekiln.pipeline.doctor.row import Row, fail, ok, warn
from edgekiln.runtime.backends import ONNX_BACKENDS
from edgekiln.runtime.backends.tensorrt_buckets import tell_profiles
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.judged_with import KIND_UNKNOWN
from edgekiln.runtime.bundles.manifest import VariantRecord
from edgekiln.runtime.errors import SelfTestError, UntrustedError

__all__ = ["check_bundle"]

_ENVIRONMENT_CODES = {"environment", "missing_extra", "device", "resources"}


def check_bundle(path: Path) -> list[Row]:
    """One row for the bundle, one for each variant; each engine is loaded and run in a child process.

    Raises:
        UsageError: there is no such folder, or it is no bundle.
    """
    try:
        bundle = open_bundle(path)
    except UntrustedError as error:
        return [
            fail("bundle", error.message, error.hint or "Take a fresh copy of the bundle, or make it again.")
        ]
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1)) as pool:
        answers = list(pool.map(functools.partial(_ask_for_variant, path), bundle.variants))
    looked_at = list(zip(bundle.variants, answers, strict=True))
    rows = [_describe_variant(variant, answer) for variant, answer in looked_at]
    loading = [v.name for v, answer in looked_at if v.deployable and answer and answer.problem is None]
    head = f"{bundle.name}, whole, {len(bundle.variants)} variants"
    if loading:
        return [ok("bundle", f"{head}; passed and load here: {', '.join(loading)}"), *rows]
    remedy = "See the rows below; `edgekiln build` makes TensorRT engines on the machine that runs them."
    return [fail("bundle", f"{head}; none that passed its gate loads here", remedy), *rows]


def _ask_for_variant(path: Path, variant: VariantRecord) -> Answer | None:
    """How a child that loads it and runs it fares; ``None`` for one that was never built."""
    return None if variant.file is None else ask_child("variant", str(path), variant.name)


def _describe_variant(variant: VariantRecord, answer: Answer | None) -> Row:
    name = f"variant {variant.name}"
    told = f"{variant.backend}, verdict {variant.verdict}"
    if variant.deployable and variant.kind is None:
        told += f", judged on: {KIND_UNKNOWN}"
    if answer is None:
        return warn(
            name, f"{told}: never built: {variant.reason}", "Run `edgekiln build` where its library is."
        )
    if answer.problem is None:
        told += f": loads and runs here, {_tell_canaries(answer.values.get('canaries'))}"
        if profiles := answer.values.get("profiles"):
            told += f"; batch sizes and working memory of a slot: {tell_profiles(profiles)}"
    if answer.problem is None and (notice := answer.values.get("notice")):
        return warn(
            name,
            f"{told}; {notice}",
            "Judge it here: edgekiln bench BUNDLE --data PICTURES --out FOLDER; or take what it was judged with.",
        )
    if answer.problem is None:
        return ok(name, told)
    if answer.values.get("code") == SelfTestError.code:
        return fail(
            name, f"{told}: answers wrongly here: {answer.problem}", "Take another variant on this machine."
        )
    found = f"{told}: does not load here: {answer.problem}"
    if answer.values.get("code") in _ENVIRONMENT_CODES:
        return warn(name, found, "Mend what the message names, or take another variant on this machine.")
    if variant.backend in ONNX_BACKENDS:
        return fail(name, found, "Take another variant on this machine, or another version of its library.")
    return fail(name, found, "Make its engine again on this machine: edgekiln build BUNDLE --out FOLDER")


def _tell_canaries(result: Mapping[str, Any] | None) -> str:
    """What came of asking a variant its made pictures."""
    if result is None:
        return "answers not checked: the bundle records none to made pictures"
    if result["unasked"]:
        return f"answers not checked: {result['unasked']}"
    return (
        f"answers {result['pictures']} made pictures as where it was judged "
        f"({result['worst']:.0%} of what may differ, {result['calls']} calls)"
    )
