"""Whether an engine runs on the kind of machine that it was judged on.

A verdict is about answers, and another version of a library or another instruction set may round otherwise, or be
wrong. Bundles of schema 1.1 and before name no kind: it is *unknown*, and only the library's version is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from edgekiln.runtime.backends import Backend
from edgekiln.runtime.bundles.machine_kind import LIBRARIES, MachineKind

__all__ = [
    "JUDGED_ON",
    "KIND_UNKNOWN",
    "VERDICT_KIND",
    "describe_kind",
    "find_versions",
    "tell_other_kind",
    "tell_other_version",
]

JUDGED_ON = "judged_on"
"""Among a variant's figures: the machine that it was judged on, where that is not the bundle's."""

VERDICT_KIND = "verdict_kind"
"""Among a variant's figures: the kind of machine that its verdict holds for, as ``MachineKind.verdict`` has it."""

KIND_UNKNOWN = "kind unknown"

_JUDGE_HERE = "`edgekiln bench BUNDLE` judges it here"


def find_versions(manifest: Mapping[str, Any], figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """Versions by package, of the machine that a variant was judged on; empty where nothing is said of it."""
    machine = figures.get(JUDGED_ON) or manifest.get("machine")
    versions = machine.get("versions") if isinstance(machine, Mapping) else None
    return versions if isinstance(versions, Mapping) else {}


def tell_other_kind(judged: MachineKind, here: MachineKind) -> str:
    """A sentence where the machine ``here`` is of another kind than a verdict holds for; empty where it is not."""
    apart = _tell_differences(judged, here)
    if not apart:
        return ""
    return f"judged on another kind of machine ({'; '.join(apart)}): its answers may differ; {_JUDGE_HERE}"


def _tell_differences(judged: MachineKind, here: MachineKind) -> list[str]:
    apart = []
    if judged.architecture != here.architecture:
        apart.append(f"{judged.architecture} there, {here.architecture} here")
    else:
        lacking = sorted({*judged.features} - {*here.features})
        new = sorted({*here.features} - {*judged.features})
        apart += [f"its CPU has {', '.join(lacking)}, this one does not"] if lacking else []
        apart += [f"this CPU has {', '.join(new)}, that one does not"] if new else []
    if judged.sm != here.sm:
        apart.append(f"compute capability {judged.sm or 'unknown'} there, {here.sm or 'unknown'} here")
    if (judged.library, judged.version) != (here.library, here.version):
        apart.append(
            f"{judged.library} {judged.version} there, {here.library} {here.version or 'of unknown version'} here"
        )
    return apart


def tell_other_version(backend: Backend, versions: Mapping[str, Any]) -> str:
    """A sentence where the library, imported by now, is another one than it was judged with; for bundles without kinds.

    Empty where it is the same or another patch of it, or where ``versions`` (of ``find_versions``) does not say.
    """
    module, packages = LIBRARIES.get(backend, ("", ()))
    if module not in sys.modules:
        return ""
    judged = next((versions[name] for name in packages if isinstance(versions.get(name), str)), "")
    here = str(sys.modules[module].__version__).partition("-")[0]
    if not judged or _release(judged) == _release(here):
        return ""
    return (
        f"judged with {module} {judged}, running under {here}: its answers may differ a little; {_JUDGE_HERE}"
    )


def describe_kind(kind: MachineKind | None) -> str:
    """What a verdict holds for, in short: ``x86_64, avx2, avx512_vnni; onnxruntime 1.32``."""
    if kind is None:
        return KIND_UNKNOWN
    machine = [kind.architecture, *kind.features, *([f"compute capability {kind.sm}"] if kind.sm else [])]
    return f"{', '.join(machine)}; {kind.library} {kind.version}".rstrip()


def _release(version: str) -> list[str]:
    return version.split(".")[:2]
