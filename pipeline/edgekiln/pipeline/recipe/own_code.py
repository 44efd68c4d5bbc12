"""Where ``module:callable`` of a recipe is sought: as Python seeks any module, and at last beside the recipe.

So a file beside the recipe needs no installation, and can never stand in for an installed package or a part of Python.
Child processes seek in the same places: they get this process's import path.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["seek_beside"]


def seek_beside(folder: Path, references: Iterable[str]) -> tuple[str, ...]:
    """Put ``folder`` at the end of the import path where a reference is ``module:callable``; imports nothing.

    Returns a sentence for each module that lies in ``folder`` and is not the one that will be imported.

    Args:
        folder: the recipe's, absolute.
        references: values of ``data.source`` and ``backbone.model``, of any kind.
    """
    modules = sorted({name.partition(":")[0].partition(".")[0] for name in references if ":" in name})
    if not modules:
        return ()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return tuple(notice for module in modules if (notice := _explain_shadow(folder, module)))


def _explain_shadow(folder: Path, module: str) -> str | None:
    beside = next((path for path in (folder / f"{module}.py", folder / module) if path.exists()), None)
    found = _find(module)
    if beside is None or found is None or Path(found).resolve().is_relative_to(folder):
        return None
    return (
        f"{beside} is not used: another module {module!r} is found before it ({found}). Rename the one beside the "
        "recipe, or remove it."
    )


def _find(module: str) -> str | None:
    """File or folder of a module, or what else tells where it is from; ``None`` where there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # ValueError: loaded by hand, without a spec
        return None
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)
