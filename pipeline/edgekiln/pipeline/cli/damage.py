"""Damaged reports: what fails deep inside while one is compared or rendered is told as damage, not as a bug."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgekiln.runtime.errors import UntrustedError

__all__ = ["untrusted_when_damaged"]

_RAISED: tuple[type[Exception], ...] = (
    LookupError, TypeError, ValueError, ArithmeticError, AttributeError,
)  # fmt: skip


@contextmanager
def untrusted_when_damaged(
    problem: str, path: Path | None = None, *, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn what a missing or senseless value raises, or ``also``, into an UntrustedError that begins with ``problem``.

    A report has hundreds of values: using them is what checks them. --debug shows where.
    """
    try:
        yield
    except _RAISED + also as error:
        raise UntrustedError(
            f"{problem}, it lacks something: {error!r}.",
            hint="Take the file that `edgekiln run` wrote, unchanged.",
            path=path,
        ) from error
