"""Versions and the ranges that edgekiln's own metadata asks for, read without any package.

Knows the operators that this project's requirements use (``>=``, ``<``, ``==``); releases are compared number by
number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Requirement", "is_within", "parse_release", "parse_requirements"]

_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*(?P<range>[^;]*)(?:;(?P<marker>.*))?"
)
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")
_CLAUSE = re.compile(r"(>=|<|==)\s*([0-9][^,\s]*)")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of ``Requires-Dist``: a distribution, the range as written, and the extra that it belongs to."""

    name: str
    range: str
    extra: str | None


def parse_requirements(lines: Iterable[str]) -> list[Requirement]:
    """The lines of ``importlib.metadata.requires``; environment markers other than the extra are not looked at."""
    found = []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is not None:
            extra = _EXTRA.search(match["marker"] or "")
            found.append(Requirement(match["name"], match["range"].strip(" ()"), extra[1] if extra else None))
    return found


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
