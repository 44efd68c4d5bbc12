"""Versions and the ranges that edgekiln's own metadata asks for, read without any package.

Knows the operators that this project's requirements use (``>=``, ``<``, ``==``); releases are compared number by
number.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Requirement", "is_within", "parse_release", "parse_requirements"]

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*(?P<range>[^;]*)(?:;(?P<marker>.*))?"
)
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_PYTHON = re.compile(r"""python_version\s*(>=|<|==)\s*['"]([0-9.]+)['"]""")
_MACHINE = re.compile(r"""platform_machine\s*==\s*['"]([^'"]+)['"]""")
_CLAUSE = re.compile(r"(>=|<|==)\s*([0-9][^,\s]*)")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of ``Requires-Dist``: a distribution, the range as written, and the extra that it belongs to."""

    name: str
    range: str
    extra: str | None


def parse_requirements(lines: Iterable[str]) -> list[Requirement]:
    """The lines of ``importlib.metadata.requires`` that are for this Python and this machine.

    Of environment markers those that this project has are understood: Python's version, the machine and the extra.
    """
    found = []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is not None and _is_for_here(marker := match["marker"] or ""):
            extra = _EXTRA.search(marker)
            found.append(Requirement(match["name"], match["range"].strip(" ()"), extra[1] if extra else None))
    return found


def _is_for_here(marker: str) -> bool:
    version = ".".join(map(str, sys.version_info[:2]))
    pythons = (is_within(version, "".join(clause)) for clause in _PYTHON.findall(marker))
    return all(pythons) and all(name == platform.machine() for name in _MACHINE.findall(marker))


def parse_release(version: str) -> tuple[int, ...]:
    """``2.9.1`` of ``2.9.1rc2+cu128`` as numbers, without trailing zeros: 2.0 is 2."""
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def is_within(version: str, range_: str) -> bool:
    """Whether a version lies in a range such as ``>=0.47,<0.48``; an empty range holds every version."""
    here = parse_release(version)
    tests = {">=": here.__ge__, "<": here.__lt__, "==": here.__eq__}
    return all(tests[operator](parse_release(limit)) for operator, limit in _CLAUSE.findall(range_))
