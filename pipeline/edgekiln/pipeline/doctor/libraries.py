"""The engine libraries, each loaded in a child process: onnxruntime's providers are created, not just listed."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Sequence

from edgekiln.benchmarks.environment import tool_versions
from edgekiln.pipeline.doctor.child import Answer, ask_child
from edgekiln.pipeline.doctor.row import Row, fail, ok, warn

__all__ = ["check_onnxruntime", "check_openvino", "check_pycuda", "explain_import", "explain_wheels"]

# The least glibc that the newest wheels ask for, from their names: onnxruntime 1.32.0 and openvino 2026.4.1. There are
# none for musl, for 32 bits and for other processors.
_LEAST_GLIBC = {
    "onnxruntime": {"x86_64": (2, 28), "aarch64": (2, 28)},
    "openvino": {"x86_64": (2, 28), "aarch64": (2, 35)},
}

_FIRST_WITH = {(2, 28): "Debian 10, Ubuntu 20.04, RHEL 8", (2, 35): "Debian 12, Ubuntu 22.04"}
_NUMPY_ABI = re.compile(
    r"compiled (?:using|against) NumPy 1\.x|numpy\.dtype size changed|_ARRAY_API not found"
)
_LIBRARY_LINE = re.compile(r"\x1b\[[0-9;]*m|^.*?\[[EW]:onnxruntime:[^\]]*\]\s*")
_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"


def check_onnxruntime(gpu_here: bool) -> list[Row]:
    """One row for the library, one for each provider that it lists. A provider is what it gives, not what it says."""
    if importlib.util.find_spec("onnxruntime") is None:
        return [
            warn(
                "onnxruntime",
                "not installed",
                explain_wheels("onnxruntime")
                or "Run: pip install 'edgekiln[onnx]', or 'edgekiln[gpu]' for CUDA",
            )
        ]
    listed = ask_child("providers")
    if listed.problem:
        return [fail("onnxruntime", explain_import(listed), "Run: pip install --force-reinstall onnxruntime")]
    providers: Sequence[str] = listed.values["providers"]
    head = ok("onnxruntime", f"{listed.values['version']}, lists {', '.join(providers)}")
    return [head, *(_check_provider(name, gpu_here) for name in providers)]


def _check_provider(name: str, gpu_here: bool) -> Row:
    answer = ask_child("provider", name)
    row = f"provider {name.removesuffix('ExecutionProvider')}"
    if not answer.problem and answer.values["given"] == name:
        if answer.values["right"]:
            return ok(row, "created, and computes a tiny model right")
        return fail(row, "created, and computes a tiny model wrong", "Install onnxruntime again.")
    reason = answer.problem or f"listed, but {answer.values['given']} was given"
    found = f"cannot be created: {reason}{_last_line(answer.log)}"
    if name == _CPU:
        return fail(row, found, "Run: pip install --force-reinstall onnxruntime")
    if name == _CUDA and gpu_here:
        return fail(
            row,
            found,
            "Run: pip install 'edgekiln[gpu]' in a fresh environment: CUDA 13 and cuDNN 9 come with it",
        )
    unused = "" if name == _CUDA else "edgekiln does not use it; "
    return warn(row, found, f"{unused}engines for it cannot run here.")


def _last_line(log: str) -> str:
    """What the library said last, without its own prefix; empty where it was silent."""
    lines = [
        _LIBRARY_LINE.sub("", line).strip() for line in log.splitlines() if "rror" in line or "ailed" in line
    ]
    return f" ({lines[0][:200]})" if lines else ""


def explain_import(answer: Answer) -> str:
    """Why an import failed in the child; a package built for another NumPy is named as that."""
    if _NUMPY_ABI.search(f"{answer.problem} {answer.log}"):
        return f"it was built for another NumPy than {tool_versions(['numpy']).get('numpy')}"
    return f"installed, and cannot be imported: {answer.problem}{_last_line(answer.log)}"


def check_openvino() -> list[Row]:
    """OpenVINO, where it is installed, through edgekiln's own backend. Its telemetry is made absent before."""
    version = tool_versions(["openvino"]).get("openvino")
    if version is None:
        reason = explain_wheels("openvino")  # nobody needs it; who wants it is told why pip finds nothing
        return [ok("openvino", f"not installed. {reason}")] if reason else []
    if importlib.util.find_spec("edgekiln.runtime.backends.openvino") is None:
        return [ok("openvino", f"{version} installed; this edgekiln has no backend for it")]
    answer = ask_child("session", "openvino")
    if answer.problem or not answer.values["right"]:
        reason = explain_import(answer) if answer.problem else "it computes a tiny model wrong"
        return [fail("openvino", f"{version}: {reason}", "Run: pip install --force-reinstall openvino")]
    return [ok("openvino", f"{version}, computes a tiny model right")]


def explain_wheels(library: str) -> str | None:
    """Why pip finds no wheel of ``library`` for this system, or an old one alone, and what helps; else ``None``."""
    machine, (libc, version) = platform.machine(), platform.libc_ver()
    least = _LEAST_GLIBC[library].get(machine)
    if sys.maxsize < 2**32:
        return (
            f"There are no wheels of {library} for a 32-bit Python: install a 64-bit system and its Python."
        )
    if libc != "glibc":
        return f"There are no wheels of {library} for musl (Alpine): use a system with glibc, as Debian or Ubuntu."
    if least is None:
        return f"There are no wheels of {library} for {machine}: x86_64 and aarch64 alone have some."
    if tuple(map(int, version.split(".")[:2])) >= least:
        return None
    wanted = ".".join(map(str, least))
    return (
        f"The newest wheels of {library} for {machine} need glibc {wanted}, this system has {version}: take a newer "
        f"system ({_FIRST_WITH[least]}), or an older release if pip finds one."
    )


def check_pycuda(gpu_here: bool) -> list[Row]:
    """pycuda is compiled where it is installed: against a CUDA and a NumPy that may have changed since."""
    version = tool_versions(["pycuda"]).get("pycuda")
    if version is None:
        return []
    answer = ask_child("import", "pycuda.driver")
    if answer.problem is None:
        return [ok("pycuda", f"{version}, imports")]
    found = f"{version}: {explain_import(answer)}"
    if gpu_here:
        return [fail("pycuda", found, "Run: pip install --force-reinstall --no-cache-dir pycuda")]
    return [warn("pycuda", found, "It needs a driver; where there is none nothing uses it.")]
