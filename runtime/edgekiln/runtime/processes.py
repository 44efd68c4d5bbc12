"""What one process has loaded belongs to it alone, and children import what this process would.

A fork copies memory and one thread. The worker threads of an engine library, and what a GPU's driver knows of the
process, are not copied: a session of onnxruntime that was opened with four threads ends its child by a segmentation
fault when it is freed there. So a loaded engine belongs to the process that loaded it, whatever its library: its use in
a fork is a typed error, and so is pickling it for a child that is started anew.

Children are Python processes that never import from the working folder. ``python -m`` and ``python -c`` put it first on
the import path, and a file ``random.py`` or ``numpy.py`` that lies there would be executed instead of the real one.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection
from typing import NoReturn
from weakref import WeakSet

from edgekiln.runtime.errors import EnvironmentProblem, ForkedError, UsageError

__all__ = [
    "HomeProcess",
    "NotPicklable",
    "child_environment",
    "code_command",
    "keep_in_forks",
    "module_command",
]


# --------------------------------------------------------------------------------------------------------------
# What belongs to one process


class HomeProcess:
    """The process in which it was made."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_here(self) -> bool:
        """False in a fork."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise ForkedError in a fork. Call it before any lock is taken: its holder may not exist in the child."""
        if os.getpid() == self._pid:
            return
        raise ForkedError(
            f"This model was loaded in process {self._pid} and cannot be used in its fork {os.getpid()}.",
            hint="Load the bundle in each worker, after the fork, or start workers with multiprocessing's 'spawn'.",
        )


class NotPicklable:
    """Base of what holds a loaded engine: pickling and copying it raise UsageError, which says what to do instead."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            f"A {type(self).__name__} cannot be pickled or copied: it holds an engine, which belongs to the process "
            "that loaded it.",
            hint="Give the child the path of the bundle, and call edgekiln.runtime.load(path) there.",
        )


_kept: WeakSet[object] = WeakSet()


def keep_in_forks(library_object: object) -> None:
    """Never free ``library_object`` in a forked child: its destructor would wait for threads that are not there.

    What it holds stays in the child's memory, shared with the parent's as long as neither writes to it.
    """
    _kept.add(library_object)


def _make_immortal() -> None:
    for library_object in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(library_object))


os.register_at_fork(after_in_child=_make_immortal)


# --------------------------------------------------------------------------------------------------------------
# Children

# `python -P` does this from 3.11 on; -I would also ignore PYTHONPATH and all other PYTHON... variables. Nothing but
# `sys`, which is built in, is imported before the path is right.
_FIND_IMPORTS = (
    "import sys; sys.path[:] = dict.fromkeys([*sys.argv.pop(1).split('\\n'), *filter(None, sys.path)])\n"
)
_RUN_MODULE = (
    "del sys.argv[0]\nimport runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
)


def module_command(module: str, *arguments: str) -> list[str]:
    """``python -m module arguments``, which imports from where this process does but never from the working folder.

    Start it with ``child_environment()``.

    Raises:
        EnvironmentProblem: this process is a frozen program, which has no interpreter to start.
    """
    return code_command(_RUN_MODULE, module, *arguments)


def code_command(code: str, *arguments: str) -> list[str]:
    """``python -c code arguments``, as ``module_command`` for the rest."""
    if getattr(sys, "frozen", False):
        raise EnvironmentProblem(
            f"This needs processes of Python, and {sys.executable} is a frozen program.",
            hint="A frozen program can load bundles and predict; run everything else with an installed edgekiln.",
        )
    return [sys.executable, "-c", _FIND_IMPORTS + code, "\n".join(_import_path()), *arguments]


def child_environment(without: Collection[str] = ()) -> dict[str, str]:
    """This process's environment but for the variables ``without``; no import path in it means the working folder."""
    named = filter(
        None, os.environ.get("PYTHONPATH", "").split(os.pathsep)
    )  # an empty entry means that folder
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(named),
        "PYTHONSAFEPATH": "1",
    }  # also for children's children


def _import_path() -> list[str]:
    """This process's import path, absolute, without the working folder that Python put before its own library.

    The folder stays where PYTHONPATH names it, and behind the library: an editable installation or a recipe lies there.
    """
    here, library = os.path.realpath("."), os.path.dirname(os.__file__)  # noqa: PTH120 # as sys.path spells it
    entries = [os.path.abspath(entry) for entry in map(str, sys.path)]  # noqa: PTH100 # and "" is the working folder
    named = {os.path.realpath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    first = entries.index(library) if library in entries else len(entries)
    return [
        entry
        for place, entry in enumerate(entries)
        if place > first or os.path.realpath(entry) != here or here in named
    ]
