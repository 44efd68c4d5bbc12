"""The child that uses damaged files: a path a line on standard input, how it ended a line on standard output."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from edgekiln.runtime.errors import EdgekilnError
from fuzz.targets import TARGETS

_MEMORY_BYTES = 8 * 2**30


def use_files(kind: str, bundle: Path) -> None:
    """Serve until the input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        answers.write(json.dumps(_use(kind, Path(line.rstrip("\n")), bundle)) + "\n")


def _use(kind: str, path: Path, bundle: Path) -> list[str]:
    """(end, detail): ``ok``, ``typed CODE``, or ``untyped CLASS``, which is a finding."""
    try:
        TARGETS[kind].consume(path, bundle)
    except EdgekilnError as error:
        return [f"typed {error.code}", str(error)[:300]]
    except BaseException as error:  # that is what is looked for
        return [f"untyped {type(error).__name__}", str(error)[-2000:]]
    return ["ok", ""]


if __name__ == "__main__":
    use_files(sys.argv[1], Path(sys.argv[2]))
