"""Looks at this machine, its packages and a bundle, and says what does not work and how to mend it.

Needs numpy, Pillow, click and rich alone, like the runtime. Each check is one function from nothing, or from files
below a root, to rows; whatever can crash runs in a child process. Nothing is changed, fetched or sent.

May import: ``runtime``, ``runtime/cuda``, ``runtime/backends``, ``runtime/bundles``, ``runtime/serving``,
``benchmarks``, ``export/engines``, ``pipeline``, ``pipeline/shipping``.
"""

from __future__ import annotations

import functools
import getpass
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from edgekiln.pipeline.doctor import bundles, driver_fit, gpu, jetson, libraries, machine, packages, storage
from edgekiln.pipeline.doctor.row import Row, State, fail
from edgekiln.pipeline.shipping.privacy import find_home, remove_private

__all__ = ["Row", "State", "count_states", "examine"]

_Check = Callable[[], "Row | list[Row]"]


def examine(bundle: Path | None = None, *, runs: Path = Path("runs")) -> list[Row]:
    """Run every check; the order of the rows is always the same.

    Args:
        bundle: also check whether its engines load here.
        runs: folder that runs would be written to.

    Raises:
        UsageError: ``bundle`` is no bundle.
    """
    last = bundles.check_bundle(bundle) if bundle else []  # first: a wrong path is told at once
    checks = _list_checks(gpu.probe_gpus(), runs)
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_run_check, checks))
    names = _private_names()
    return [_hide(row, names) for rows in (*found, last) for row in rows]


def _list_checks(gpus: gpu.Gpus, runs: Path) -> list[_Check]:
    gpu_here = gpus.problem is None
    room = "Free some, or choose another place"
    return [
        packages.check_python,
        packages.check_edgekiln,
        packages.check_packages,
        packages.check_clashes,
        functools.partial(libraries.check_onnxruntime, gpu_here),
        libraries.check_openvino,
        functools.partial(gpu.check_driver, gpus),
        functools.partial(gpu.check_cuda_packages, gpus),
        functools.partial(driver_fit.check_driver_fit, gpus),
        functools.partial(libraries.check_pycuda, gpu_here),
        gpu.check_tensorrt,
        jetson.check_jetson,
        machine.check_processor,
        machine.check_int8,
        machine.check_governor,
        machine.check_cores,
        machine.check_memory,
        functools.partial(storage.check_room, "disk for runs", runs, f"{room} with --runs."),
        storage.check_cache_room,
        storage.check_cache_folder,
        storage.check_shared_memory,
        storage.check_temporary_folder,
        storage.check_encoding,
    ]


def _run_check(check: _Check) -> list[Row]:
    """A check that fails itself is a row too: a doctor that crashes is of no use to anybody."""
    try:
        rows = check()
    except Exception as error:
        function = check.func if isinstance(check, functools.partial) else check
        name = getattr(function, "__name__", "check").removeprefix("check_").replace("_", " ")
        text = f"this check failed itself: {type(error).__name__}: {error}"
        return [fail(name, text, "Please report this line.")]
    return [rows] if isinstance(rows, Row) else rows


def count_states(rows: Sequence[Row]) -> dict[State, int]:
    """Number of rows in each state."""
    states: tuple[State, ...] = ("OK", "WARN", "FAIL")
    return {state: sum(row.state == state for row in rows) for state in states}


def _hide(row: Row, names: Mapping[str, str]) -> Row:
    return replace(
        row,
        found=remove_private(row.found, names),
        fix=None if row.fix is None else remove_private(row.fix, names),
    )


def _private_names() -> dict[str, str]:
    """What to replace by what: the home folder before the user's name that it holds."""
    home = find_home()
    homes = () if home is None else (str(home), os.path.realpath(home))
    names = {folder: "~" for folder in homes if len(folder) > 1}
    host = socket.gethostname()
    if host and host != "localhost":
        names[host] = "HOST"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "root"
    if user != "root":  # every machine has that one
        names[user] = "USER"
    return names
