"""Who imports whom in the four roots, from the syntax trees; and what ARCHITECTURE.md allows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from documents import table
from tests_support import ROOT

ROOTS = ("runtime", "export", "benchmarks", "pipeline")
_CALL = re.compile(r"(edgekiln(?:\.\w+)+):\w+")


@cache
def modules() -> dict[str, Path]:
    """Every product module by its dotted name; a package by its own."""
    found = {}
    for root in ROOTS:
        for path in sorted((ROOT / root / "edgekiln").rglob("*.py")):
            parts = path.relative_to(ROOT / root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names that a file imports anywhere in it, or names as ``"module:function"``.

    ``from a import b`` gives ``a.b``: whether ``b`` is a module is for the caller to say.
    """
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and (call := _CALL.fullmatch(str(node.value))):
            yield call[1]


@cache
def arrows() -> dict[str, set[str]]:
    """Modules by the modules that import them, the other way round: ``importer -> imported``."""
    return {
        name: {owner for imported in imported_names(path) if (owner := _owner(imported)) and owner != name}
        for name, path in modules().items()
    }


def _owner(imported: str) -> str | None:
    """The module that a dotted name is, or is in."""
    parent = imported.rpartition(".")[0]
    return next((name for name in (imported, parent) if name in modules()), None)


def wing_of(module: str, rows: Iterable[str]) -> str:
    """The row of the table that a module belongs to: its own, its wing's, or its root's ground."""
    _, root, *rest = module.split(".")
    own = f"{root}/{rest[0]}" if rest else f"{root}/__init__"
    return own if own in rows else root


@cache
def written() -> dict[str, list[str]]:
    """The table of ARCHITECTURE.md as it stands there: each wing, and what it may import."""
    return {
        cells[0].strip("`"): re.findall(r"`([^`]+)`", cells[2])
        for cells in table(ROOT / "ARCHITECTURE.md", "wing", "who lives there", "may import")
    }


@cache
def allowed() -> dict[str, set[str]]:
    """Each wing, and those that it may import; ``runtime*`` in the table is all of the runtime."""
    return {
        wing: {name for name in written() if name != wing and any(fnmatchcase(name, p) for p in patterns)}
        for wing, patterns in written().items()
    }


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found
