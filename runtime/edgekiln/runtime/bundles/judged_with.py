"""Whether an engine runs under the library version that it was judged with.

A verdict is about answers, and another version of a library may round otherwise, or fuse other layers. TensorRT's
engines refuse other versions by themselves; ONNX files run under any.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from edgekiln.runtime.backends import Backend

__all__ = ["JUDGED_ON", "find_versions", "tell_other_version"]

_LIBRARIES: Mapping[Backend, tuple[str, tuple[str, ...]]] = {
    "onnxruntime-cpu": ("onnxruntime", ("onnxruntime", "onnxruntime-gpu")),
    "onnxruntime-cuda": ("onnxruntime", ("onnxruntime-gpu", "onnxruntime")),
    "openvino": ("openvino", ("openvino",)),
}
"""By backend: the module, and the names of the packages that bring it."""


JUDGED_ON = "judged_on"
"""Among a variant's figures: the machine that it was judged on, where that is not the bundle's."""


def find_versions(manifest: Mapping[str, Any], figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """Versions by package, of the machine that a variant was judged on; empty where nothing is said of it."""
    machine = figures.get(JUDGED_ON) or manifest.get("machine")
    versions = machine.get("versions") if isinstance(machine, Mapping) else None
    return versions if isinstance(versions, Mapping) else {}


def tell_other_version(backend: Backend, versions: Mapping[str, Any]) -> str:
    """A sentence where the library, imported by now, is another one than it was judged with.

    Empty where it is the same or another patch of it, or where ``versions`` (of ``find_versions``) does not say.
    """
    module, packages = _LIBRARIES.get(backend, ("", ()))
    if module not in sys.modules:
        return ""
    judged = next((versions[name] for name in packages if isinstance(versions.get(name), str)), "")
    here = str(sys.modules[module].__version__).partition("-")[0]
    if not judged or _release(judged) == _release(here):
        return ""
    return f"judged with {module} {judged}, running under {here}: its answers may differ a little"


def _release(version: str) -> list[str]:
    return version.split(".")[:2]
