"""Runs the tests that are marked ``gpu`` and reads pytest's JUnit report."""

from __future__ import annotations

import re
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekiln.pipeline.gpu_suite.isolation import SkippedPart, Tell
from edgekiln.pipeline.gpu_suite.machine import is_installed
from edgekiln.runtime.processes import child_environment, module_command

__all__ = ["parse_junit", "run_gpu_tests"]

_ROOT = Path(__file__).parents[4]
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_TEXT_CHARACTERS = 600


def run_gpu_tests(arguments: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """All tests marked ``gpu``: counts, each skip's reason, each failure's text.

    Args:
        arguments: ``root`` is the checkout's folder, for tests of this module.
        tell: unused.
    """
    if not is_installed("pytest"):
        raise SkippedPart("pytest is not installed")
    root = Path(arguments.get("root") or _ROOT)
    files = _files_with_gpu_tests(root / "tests")
    if not files:
        raise SkippedPart("there are no tests here: this is no checkout of edgekiln")
    with tempfile.TemporaryDirectory(prefix="edgekiln-gpu-") as folder:
        report = Path(folder) / "junit.xml"
        command = module_command("pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider")
        command += ["--continue-on-collection-errors", f"--junitxml={report}", *map(str, files)]
        done = subprocess.run(
            command,
            cwd=root,
            env={**child_environment(), "EDGEKILN_CACHE": str(Path(folder) / "cache")},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {(done.stdout + done.stderr)[-1000:]}")
        return {"exit_code": done.returncode, **parse_junit(report.read_text("utf-8"))}


def _files_with_gpu_tests(folder: Path) -> list[Path]:
    """Only these are collected: others import what a machine for measuring need not have."""
    return [path for path in sorted(folder.rglob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]


def parse_junit(text: str) -> dict[str, Any]:
    """Counts, and what was said of every test that did not pass.

    A file that could not be collected since a package is missing is ``not_collected``, and no failure.
    """
    passed, skips, failures, not_collected = 0, [], [], []
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
        problem = next((child for child in case if child.tag in {"failure", "error"}), None)
        skipped = case.find("skipped")
        if problem is not None:
            told = f"{problem.get('message') or ''} {problem.text or ''}".strip()
            missing = _MISSING.search(told) if "collection failure" in told else None
            if missing is not None:
                not_collected.append({"test": name, "reason": f"{missing[1]} is not installed"})
            else:
                failures.append({"test": name, "reason": told[:_TEXT_CHARACTERS]})
        elif skipped is not None:
            skips.append({"test": name, "reason": (skipped.get("message") or "")[:_TEXT_CHARACTERS]})
        else:
            passed += 1
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": len(skips),
        "failures": failures,
        "skips": skips,
        "not_collected": not_collected,
    }
