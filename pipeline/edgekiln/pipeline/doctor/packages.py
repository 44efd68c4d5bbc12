"""Python, edgekiln and the installed packages: versions, ranges, and distributions that overwrite each other."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires

from edgekiln.benchmarks.environment import read_commit, tool_versions
from edgekiln.pipeline.doctor.row import Row, fail, ok, warn
from edgekiln.pipeline.doctor.versions import Requirement, is_within, parse_requirements

__all__ = ["check_clashes", "check_edgekiln", "check_packages", "check_python"]

_UNIONS = {"demo", "dev"}  # extras that only collect other extras

# Groups of distributions that write the same files: at most one of each group may be installed. (Names from their
# wheels' file lists; onnxruntime's own installation page says the same of its distributions.)
_CLASHING: dict[str, tuple[str, ...]] = {
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-openvino",
        "onnxruntime-directml",
        "onnxruntime-qnn",
        "onnxruntime-rocm",
        "onnxruntime-migraphx",
    ),
    "TensorRT": ("tensorrt-cu12", "tensorrt-cu13"),
    "TensorRT lean": ("tensorrt-lean-cu12", "tensorrt-lean-cu13"),
    "TensorRT dispatch": ("tensorrt-dispatch-cu12", "tensorrt-dispatch-cu13"),
    "TensorRT-RTX": ("tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
}
_REINSTALL = {
    "onnxruntime": "then one of 'edgekiln[onnx]' (CPU) and 'edgekiln[gpu]' (CUDA)",
    "TensorRT-RTX": "then 'edgekiln[rtx]'",
    "TensorRT lean": "then 'edgekiln[lean]'",
}


def check_python() -> Row:
    """Interpreter, system and C library; wheels of engine libraries want glibc and 64 bits."""
    libc, libc_version = platform.libc_ver()
    found = (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.release()} "
        f"{platform.machine()}, {libc or 'no glibc'} {libc_version}".strip()
    )
    if sys.maxsize < 2**32:
        return fail("python", f"{found}, 32 bits", "Install a 64-bit Python: engine libraries have no other.")
    if platform.system() == "Linux" and libc != "glibc":
        return warn(
            "python", found, "Use a distribution with glibc: engine libraries have no wheels for musl."
        )
    return ok("python", found)


def check_edgekiln() -> Row:
    """Version of this package, and the commit where it runs from a checkout."""
    version = tool_versions(["edgekiln"]).get("edgekiln")
    commit = read_commit()
    if version is None:
        return warn(
            "edgekiln", f"not installed, run from source at {commit}", "Run: pip install -e . in the checkout"
        )
    return ok("edgekiln", version + (f" at {commit}" if commit else ""))


def check_packages() -> list[Row]:
    """Installed versions against the ranges that edgekiln's metadata asks for, one row an extra."""
    try:
        lines = requires("edgekiln") or []
    except PackageNotFoundError:
        return []  # told by check_edgekiln
    wanted = parse_requirements(lines)
    rows = [_check_core([r for r in wanted if r.extra is None])]
    absent = []
    for extra in dict.fromkeys(r.extra for r in wanted if r.extra and r.extra not in _UNIONS):
        row = _check_extra(extra, [r for r in wanted if r.extra == extra])
        rows += [row] if row else []
        absent += [] if row else [extra]
    return [*rows, ok("extras absent", ", ".join(absent) or "none")]


def _check_core(wanted: Iterable[Requirement]) -> Row:
    versions = tool_versions(r.name for r in wanted)
    problems = [
        f"{r.name} {versions.get(r.name, 'is missing')}, wanted {r.range}"
        for r in wanted
        if r.name not in versions or not is_within(versions[r.name], r.range)
    ]
    if problems:
        return fail("core packages", "; ".join(problems), "Run: pip install --upgrade edgekiln")
    return ok("core packages", _list_versions(versions))


def _check_extra(extra: str, wanted: list[Requirement]) -> Row | None:
    """``None`` where nothing of the extra is installed. What it lacks is no fault: it may not be wanted."""
    versions = tool_versions(r.name for r in wanted)
    if not versions:
        return None
    name = f"extra {extra}"
    wrong = [
        f"{r.name} {versions[r.name]}, wanted {r.range}"
        for r in wanted
        if r.name in versions and not is_within(versions[r.name], r.range)
    ]
    if wrong:
        return warn(name, "; ".join(wrong), f"Run: pip install --upgrade 'edgekiln[{extra}]'")
    missing = [r.name for r in wanted if r.name not in versions]
    lacks = f"; incomplete, without {', '.join(missing)}" if missing else ""
    return ok(name, _list_versions(versions) + lacks)


def _list_versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def check_clashes() -> list[Row]:
    """Distributions that overwrite each other's files: which one's code runs is then a matter of luck."""
    rows = []
    for product, names in _CLASHING.items():
        installed = tool_versions(names)
        if len(installed) > 1:
            rows.append(
                fail(
                    "package clash",
                    f"{_list_versions(installed)} overwrite each other's files",
                    f"Run: pip uninstall -y {' '.join(installed)}, {_REINSTALL.get(product, 'then one of them')}.",
                )
            )
    return rows or [ok("package clash", f"none between the distributions of {', '.join(_CLASHING)}")]
