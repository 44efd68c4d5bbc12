"""``load``: from a bundle to a classifier, in one call."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from edgekiln.runtime.serving.classifier import Classifier, serve_model
from edgekiln.runtime.serving.selecting import LoadOptions, load_model

if TYPE_CHECKING:
    from edgekiln.runtime.bundles.keys import KeySource

__all__ = ["load"]


def load(  # noqa: PLR0913 # a product's one door: each option is asked for by name
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    allow_unverified: bool = False,
    trusted_keys: Sequence[KeySource] | None = None,
    fast_decode: Literal["auto"] | bool = "auto",
    allow_operators: Collection[str] = (),
    slots: int | None = None,
    wait: Literal["spin", "blocking"] | None = None,
    self_test: bool = True,
) -> Classifier:
    """Open a bundle and load one of its engines.

    Args:
        path: the bundle's folder, or a ``.zip`` of it.
        variant: by name; ``None`` takes of those that passed and run here the fastest as measured on this kind of
            machine, else the first in ``PREFERENCE``. ``classifier.variant.reason`` says why it was taken.
        device: restrict the choice to ``cpu`` or ``cuda``; ``cuda:1`` is the second GPU that is seen here.
        threads: CPU worker threads; ``None`` takes those it was measured with, else what the library or a quota sets.
        allow_unverified: also load a variant, named by ``variant``, whose gate did not pass.
        trusted_keys: public keys, as paths of PEM files or PEM bytes. The bundle must be signed by one of them; this
            is checked before its manifest is read or an engine library is handed a byte. ``None`` asks for none.
        fast_decode: whether large JPEGs are decoded at a fraction of their size: ``auto`` where the bundle records that
            no answer changed, ``True`` refuses a variant without that record, ``False`` never.
        allow_operators: operators of other domains than ONNX's that an ONNX file may hold, as
            ``com.microsoft::Gelu``; without a name here they are refused before a library sees the file.
        slots: calls of a TensorRT engine that may run at once, 2 where ``None``; each costs memory of the GPU.
        wait: how such a call waits: ``spin`` (the default) is fastest and keeps a core busy, ``blocking`` leaves it to
            others. Variants of other backends refuse both where they are asked for by name, else leave them unused.
        self_test: hold the engine's answers to four made pictures against those that the bundle records, which takes
            about six calls (docs/embedding.md). OpenVINO is asked its batch when the first batch comes.

    Raises:
        UsageError: no such folder or variant, one that did not pass, or no record of fast decoding.
        EngineError: the model file is nothing that a library may be shown, or the library refused it.
        SignatureError: no signature, a foreign one, or one over other content.
        BundleError: the bundle was altered.
        EnvironmentProblem: nothing that passed can run here; SelfTestError: the variant named answers wrongly here.
    """
    engine = (variant, device, threads, allow_unverified)
    options = LoadOptions(*engine, trusted_keys, fast_decode, allow_operators, slots, wait, self_test)
    return serve_model(load_model(path, options), options)
