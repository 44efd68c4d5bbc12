"""What a file or folder is, told without running it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekiln.runtime.backends.tensorrt_buckets import tell_profiles
from edgekiln.runtime.bundles.bundle import Bundle, open_bundle
from edgekiln.runtime.bundles.judged_with import describe_kind, find_versions
from edgekiln.runtime.bundles.manifest import SIGNATURE_NAME, VariantRecord
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import ContractError, EngineError, UntrustedError, UsageError
from edgekiln.runtime.onnx_files.metadata import CONTRACT_KEY, read_metadata
from edgekiln.runtime.onnx_files.scan import check_onnx
from edgekiln.runtime.onnx_files.summary import summarize_onnx
from edgekiln.runtime.serving.ordering import find_time

__all__ = ["describe"]

_NO_CONTRACT = {
    "contract": "none: edgekiln did not export this file, and does not know its input and its classes"
}
_ONNX_AGAIN = "Copy it again, or export it again."
_INSPECTED = "It inspects bundles (folders, .zip), .onnx, .safetensors, .engine, .plan and .trt files."
_JUDGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-lean", "tensorrt-rtx")
_MAX_HEADER_BYTES = 64 * 2**20


def describe(path: Path, trusted_keys: Sequence[Path] | None = None) -> dict[str, Any]:
    """JSON values about a bundle, an ONNX file, a safetensors checkpoint or a TensorRT engine.

    Raises:
        UsageError: nothing there, or of no known kind; trusted keys for anything but a bundle.
        UntrustedError: damaged, or a bundle that none of the trusted keys signed.
    """
    if path.is_dir() or path.suffix.lower() == ".zip":
        return _describe_bundle(path, trusted_keys)
    if trusted_keys is not None:
        raise UsageError(f"{path} is no bundle, and only bundles are signed.", path=path)
    if not path.is_file():
        raise UsageError(f"There is no file or folder {path}.", hint=_INSPECTED, path=path)
    match path.suffix:
        case ".onnx":
            return _describe_onnx(path)
        case ".safetensors":
            return _describe_checkpoint(path)
        case ".engine" | ".plan" | ".trt":
            return _describe_engine(path)
        case suffix:
            raise UsageError(
                f"{path} is of no kind that edgekiln knows (ending {suffix or 'none'}).",
                hint=_INSPECTED,
                path=path,
            )


def _describe_contract(contract: Contract) -> dict[str, Any]:
    sensor = "" if contract.sensor_bits is None else f", sensor of {contract.sensor_bits} bits"
    return {
        "input": f"{contract.height} x {contract.width}, {contract.resize}, {contract.interpolation}{sensor}",
        "classes": list(contract.classes),
        "contract": contract.digest,
    }


def _describe_bundle(path: Path, trusted_keys: Sequence[Path] | None) -> dict[str, Any]:
    bundle = open_bundle(path, trusted_keys=trusted_keys)
    return {
        "kind": "bundle",
        "name": bundle.name,
        "digest": bundle.digest,
        "signature": _describe_signature(bundle),
        **_describe_contract(bundle.contract),
        "variants": [
            {
                "name": v.name,
                "backend": v.backend,
                "precision": v.precision.value,
                "verdict": v.verdict,
                "reason": v.reason,
                "judged_with": _describe_versions(find_versions(bundle.manifest, v.figures)),
                "judged_on": describe_kind(v.kind),
                "measured": _describe_times(v),
                **_describe_profiles(v),
            }
            for v in bundle.variants
        ],
        "files": [{"name": n, "bytes": f.size, "sha256": f.sha256} for n, f in sorted(bundle.files.items())],
    }


def _describe_versions(versions: Mapping[str, Any]) -> str:
    """The libraries that ran the engine and the baseline when it was judged."""
    return ", ".join(f"{name} {versions[name]}" for name in _JUDGES if name in versions)


def _describe_times(variant: VariantRecord) -> str:
    """What a call took, by kind of machine, and whether this machine is of one of these kinds."""
    here = find_time(variant)
    told = [
        f"{time} on {time.kind.gpu or time.kind.processor}, {time.kind.cores:g} cores"
        + (" (this kind of machine)" if time is here else "")
        for time in variant.times
    ]
    return "; ".join(told) or "not measured"


def _describe_profiles(variant: VariantRecord) -> dict[str, str]:
    """Batch sizes of engines, with the GPU memory that each profile works in, and those with a model of their own."""
    figures = variant.figures
    builds = (figures.get("build") or {}).get("builds") or {}
    built = [_list_profiles(build["options"]["batch"]) for build in builds.values()]
    profiles = figures.get("profiles") or [profile for several in built for profile in several]
    static = [{"min": row["batch"], "max": row["batch"]} for row in figures.get("static_batches", ())]
    told = {"profiles": profiles, "static_batches": static}
    return {key: tell_profiles(several) for key, several in told.items() if several}


def _list_profiles(batch: Any) -> list[Any]:
    return batch if isinstance(batch, list) else [batch]


def _describe_signature(bundle: Bundle) -> str:
    if bundle.signer is not None:
        return f"verified, key {bundle.signer}"
    return "there, not verified" if SIGNATURE_NAME in bundle.source.names() else "none"


def _describe_onnx(path: Path) -> dict[str, Any]:
    """Reads the bytes itself: an ONNX library is not needed, and a device that only runs engines has none."""
    data = path.read_bytes()
    try:
        check_onnx(data)
        summary, contract = summarize_onnx(data), read_metadata(data, CONTRACT_KEY)
    except EngineError as error:  # the scan sees bytes alone
        raise UntrustedError(
            f"{path} is no ONNX file that may be opened: {error.message}", hint=_ONNX_AGAIN, path=path
        ) from error
    try:
        told = _describe_contract(Contract.from_json(contract)) if contract is not None else _NO_CONTRACT
    except ContractError as error:  # it sees the text alone, not its file
        raise ContractError(f"{path}: {error.message}", hint=_ONNX_AGAIN, path=path) from error
    return {
        "kind": "onnx",
        "ir_version": summary.ir_version,
        "opset": summary.opset,
        **told,
        "operators": summary.operators,
        "warnings": [summary.warning] if summary.warning else [],
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    """Reads the header only: eight bytes of length, then JSON (the safetensors format)."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        # A damaged length reserves no memory: no more is asked for than the file holds.
        raw = file.read(min(length, path.stat().st_size)) if length <= _MAX_HEADER_BYTES else b""
    try:
        header = json.loads(raw)
        metadata = json.loads(header.pop("__metadata__")["edgekiln"])
        contract = Contract.from_json(metadata["contract"])
        backbone = metadata["backbone"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UntrustedError(
            f"{path} is no checkpoint of edgekiln: {error!r}.",
            hint="`edgekiln run` writes checkpoint.safetensors into RUNS/NAME/stages/finetune.",
            path=path,
        ) from error
    return {
        "kind": "checkpoint",
        "backbone": backbone,
        **_describe_contract(contract),
        "tensors": len(header),
    }


def _list_capabilities(capabilities: tuple[int, ...] | None) -> str:
    return "not told by its header" if capabilities is None else ", ".join(map(str, capabilities))


def _describe_engine(path: Path) -> dict[str, Any]:
    """Reads the header only: an engine is code, and nothing of it is deserialized to look at it."""
    from edgekiln.runtime.backends.engine_header import HEADER_BYTES, explain_refusal, read_engine_header
    from edgekiln.runtime.backends.tensorrt_library import find_version
    from edgekiln.runtime.cuda.driver import probe_driver

    with path.open("rb") as file:
        begin = file.read(HEADER_BYTES)
    try:
        header = read_engine_header(begin)
    except EngineError as error:  # the library sees bytes alone
        raise EngineError(f"{path}: {error.message}", hint=error.hint, path=path) from error
    state, library = probe_driver(), find_version(header.flavour)
    device = state.devices[0] if state.devices else None
    if library is None:
        reason: str | None = f"{header.flavour} is not installed"
    else:
        reason = explain_refusal(
            header, header.flavour, library, device.compute_capability if device else None
        )
    reason = reason or state.problem
    return {
        "kind": "engine",
        "flavour": header.flavour,
        "version": header.version_text,
        "capabilities": _list_capabilities(header.capabilities),
        "bytes": path.stat().st_size,
        "loads_here": f"no: {reason}" if reason else "nothing in its header speaks against it",
    }
