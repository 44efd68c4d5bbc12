"""The bundle's bill of materials, CycloneDX 1.6: what made it, and its model files by digest.

Only fields that a machine can check: names, versions, package URLs, sha256. There is no time in it, and its serial
number follows from its content, so that the same bundle gives the same bytes. Specification: ECMA-424, cyclonedx.org.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgekiln.runtime.bundles.source import hash_file

__all__ = ["SBOM_NAME", "write_sbom"]

SBOM_NAME = "sbom.cdx.json"

_ALWAYS_USED = (
    "edgekiln",
    "numpy",
    "Pillow",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
)
_USED_FOR: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnxruntime-cuda": ("nvidia-modelopt",),
    "tensorrt": ("tensorrt", "nvidia-modelopt"),
    "tensorrt-rtx": ("tensorrt-rtx", "nvidia-modelopt"),
}
_NEEDED_TO_RUN = frozenset(
    {
        "edgekiln",
        "numpy",
        "Pillow",
        "onnxruntime",
        "onnxruntime-gpu",
        "openvino",
        "tensorrt",
        "tensorrt-rtx",
    }
)
"""What a product needs to run the bundle; the rest made it and stays behind (scope ``excluded``)."""


def write_sbom(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``sbom.cdx.json`` over the model files in ``folder``.

    ``report`` gives ``name``, ``variants``, ``machine.versions`` and, where it knows, ``recipe.backbone.weights``.
    """
    variants = report["variants"]
    components = [
        *_describe_libraries(report["machine"]["versions"], {v["backend"] for v in variants}),
        *_describe_weights(report),
        *(_describe_file(folder / name) for name in _model_files(variants)),
    ]
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "machine-learning-model", "bom-ref": "bundle", "name": report["name"]},
            "tools": {"components": [_describe_package("edgekiln", version("edgekiln"), "application")]},
        },
        "components": components,
        "dependencies": [{"ref": "bundle", "dependsOn": sorted(c["bom-ref"] for c in components)}],
    }
    # The one field that has to be there once for each content, and no two times.
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, content).urn
    (folder / SBOM_NAME).write_text(json.dumps(document, sort_keys=True, indent=2) + "\n", "utf-8")


def _model_files(variants: Iterable[Mapping[str, Any]]) -> list[str]:
    """Engines, and the graphs that engines are built from."""
    names: set[str | None] = set()
    for variant in variants:
        names |= {*variant["files"], variant.get("source"), variant.get("fallback_source")}
    return sorted(name for name in names if name is not None)


def _describe_file(path: Path) -> dict[str, Any]:
    digest, _ = hash_file(path)
    return {
        "type": "machine-learning-model",
        "bom-ref": f"file:{path.name}",
        "name": path.name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def _describe_libraries(versions: Mapping[str, str], backends: set[str]) -> list[dict[str, Any]]:
    """Those of the installed libraries that had a part in these engines."""
    used = {*_ALWAYS_USED, *(name for backend in backends for name in _USED_FOR.get(backend, ()))}
    return [
        _describe_package(name, versions[name])
        | {"bom-ref": f"package:{name}", "scope": "required" if name in _NEEDED_TO_RUN else "excluded"}
        for name in sorted(used & set(versions))
    ]


def _describe_package(name: str, release: str | None, kind: str = "library") -> dict[str, Any]:
    canonical = name.lower().replace("_", "-")  # as package URLs of PyPI are written
    if release is None:
        return {"type": kind, "name": name, "purl": f"pkg:pypi/{canonical}"}
    return {"type": kind, "name": name, "version": release, "purl": f"pkg:pypi/{canonical}@{_quote(release)}"}


def _quote(release: str) -> str:
    """A local version, 2.9.0+cpu, as a package URL has it."""
    return release.replace("+", "%2B")


def _describe_weights(report: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """The package that the first weights came from, where they came from one."""
    weights = ((report.get("recipe") or {}).get("backbone") or {}).get("weights") or ""
    kind, _, name = weights.partition(":")
    if kind != "package":
        return ()
    try:
        release: str | None = version(name)
    except PackageNotFoundError:  # on a target, which has the network but not what it was trained from
        release = None
    reference = {"bom-ref": f"package:{name}", "scope": "excluded"}
    return (_describe_package(name, release) | reference,)
