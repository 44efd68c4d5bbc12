"""The process ``edgekiln``, and ``python -m edgekiln.pipeline``, as ``torchrun -m`` starts it."""

from __future__ import annotations

import sys

__all__ = ["start"]


def start() -> None:
    """Run the command line and exit; Ctrl-C counts from here on, also while the command line is imported."""
    try:
        from edgekiln.pipeline.cli import main
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("edgekiln: Interrupted. Run the same command again to go on.\n")
        sys.exit(130)  # ExitCode.INTERRUPTED, which may not have been imported
    main()


if __name__ == "__main__":
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):  # safe_path: from Python 3.11 on
        del sys.path[0]  # `python -m` put the working folder there: a random.py in it would be imported
    start()
