"""How a benchmark that is started by ``python -m`` ends: with an error of edgekiln's in one line, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from edgekiln.runtime.errors import EdgekilnError

__all__ = ["run_entry"]


def run_entry(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with its code, 0 for ``None``, or that of the error it raises."""
    try:
        code = main()
    except EdgekilnError as error:
        sys.stderr.write(f"{error}\n")
        code = int(error.exit_code)
    sys.exit(code or 0)
