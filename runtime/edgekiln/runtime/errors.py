"""The one tree of errors that edgekiln raises, and the exit code of each branch.

A message says what was got, what was wanted and what to do. Errors of other libraries are converted once,
where they enter edgekiln, with ``raise ... from``. This module knows nothing of what went wrong, only how it
is told.
"""

from __future__ import annotations

import os
import unicodedata
from enum import IntEnum
from typing import Any, ClassVar, TypeAlias

__all__ = [
    "BuildError",
    "BundleError",
    "ContractError",
    "DataError",
    "DeadlineError",
    "DeviceError",
    "DeviceLostError",
    "EdgekilnError",
    "EngineError",
    "EnvironmentProblem",
    "ExitCode",
    "ForkedError",
    "GateError",
    "ImageError",
    "InputError",
    "MissingExtraError",
    "NonFiniteError",
    "OverloadedError",
    "ParityError",
    "PrecisionError",
    "RecipeError",
    "ResourceError",
    "SelfTestError",
    "SignatureError",
    "UntrustedError",
    "UsageError",
    "as_printable",
    "join_hint",
]

# What an error may be about. A class that carries more than message, hint and path names it in an ``__init__`` of its
# own, so that type checkers and ``help`` know it; text, path and pickling are the base's.
_Path: TypeAlias = "str | os.PathLike[str] | None"


class ExitCode(IntEnum):
    """What the command line returns to the shell."""

    OK = 0
    BUG = 1
    USAGE = 2
    GATE_FAILED = 3
    UNTRUSTED = 4
    ENVIRONMENT = 5
    RESOURCES = 6
    INTERRUPTED = 130


def join_hint(message: str, hint: str | None) -> str:
    """Message and hint as sentences: a message that ends without a sign, in another's words say, gets its full stop."""
    if not hint:
        return message
    return f"{message}{'' if message.endswith(('.', '?', '!', ':', ';')) else '.'} {hint}"


_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They turn round what is written after them, in a terminal, a page and an editor."""


def as_printable(text: str) -> str:
    """The text for one line: control characters, line ends and what turns text round, of a name say, become escapes.

    Bytes that are no UTF-8 become question marks.
    """
    try:
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte
        shown = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in shown)


def _is_control(character: str) -> bool:
    return character in _BIDI or unicodedata.category(character) in {"Cc", "Zl", "Zp"}


class EdgekilnError(Exception):
    """Base of every error that edgekiln raises on purpose.

    Attributes:
        message: what was got and what was wanted, one line.
        hint: what to do about it, or ``None``.
        path: the file or folder concerned, or ``None``.
        code: short stable name of the kind, for ``--json``.
        exit_code: what the command line returns.
    """

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(self, message: str, *, hint: str | None = None, path: _Path = None) -> None:
        self.message = message
        self.hint = hint
        self.path = None if path is None else os.fspath(path)
        super().__init__(join_hint(message, hint))

    def __reduce__(self) -> tuple[Any, ...]:
        # The default would call the class with the finished text: that fails where a keyword is required.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[EdgekilnError], args: tuple[str, ...], attributes: dict[str, Any]) -> EdgekilnError:
    """An error as it was before it was pickled."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class UsageError(EdgekilnError):
    """The caller asked for something that cannot be meant: a wrong argument, a closed session."""

    code = "usage"
    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """The recipe is not valid."""

    code = "recipe"


class DataError(UsageError):
    """The labelled images are not usable: missing folder, one class, too many unreadable files."""

    code = "data"


class InputError(UsageError):
    """An array handed to a session has the wrong type, dtype or shape."""

    code = "input"


class ForkedError(UsageError):
    """Something that belongs to one process was used in its fork."""

    code = "forked"


class ImageError(UsageError):
    """One picture could not become an array.

    Attributes:
        reason: ``missing``, ``unreadable``, ``too_large``, ``format``, ``truncated``, ``corrupt``, ``mode``,
            ``memory``, ``type``, or in training ``changed``; docs/images.md tells what each means.
    """

    code = "image"

    def __init__(self, message: str, *, reason: str, hint: str | None = None, path: _Path = None) -> None:
        super().__init__(message, hint=hint, path=path)
        self.reason = reason


class GateError(EdgekilnError):
    """A result was produced but is not good enough to ship."""

    code = "gate"
    exit_code = ExitCode.GATE_FAILED


class ParityError(GateError):
    """The exported graph does not compute what the PyTorch model computes."""

    code = "parity"


class PrecisionError(GateError):
    """An engine does not run in the precision that was asked for."""

    code = "precision"


class NonFiniteError(GateError):
    """An engine produced NaN or infinity.

    Attributes:
        images: for which pictures, counted from 0 in the batch or stream that was asked about; empty where it was
            no batch of pictures.
    """

    code = "non_finite"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        path: _Path = None,
        images: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message, hint=hint, path=path)
        self.images = images


class UntrustedError(EdgekilnError):
    """A file is corrupt, was altered, or is not one that edgekiln may open."""

    code = "untrusted"
    exit_code = ExitCode.UNTRUSTED


class BundleError(UntrustedError):
    """A bundle does not hold exactly what its manifest lists."""

    code = "bundle"


class SignatureError(UntrustedError):
    """A bundle is not signed by a key that is trusted, or its signature covers other content."""

    code = "signature"


class ContractError(UntrustedError):
    """A stored contract cannot be read."""

    code = "contract"


class EngineError(UntrustedError):
    """An engine library refused a model file whose digest was right."""

    code = "engine"


class EnvironmentProblem(EdgekilnError):
    """This machine lacks something: a package, a GPU, a driver, a version."""

    code = "environment"
    exit_code = ExitCode.ENVIRONMENT


class MissingExtraError(EnvironmentProblem):
    """A package of an optional extra is not installed."""

    code = "missing_extra"


class DeviceError(EnvironmentProblem):
    """The device that was asked for cannot run here."""

    code = "device"


class DeviceLostError(DeviceError):
    """The GPU failed in a way that stays: this process cannot use it again."""

    code = "device_lost"


class SelfTestError(EnvironmentProblem):
    """An engine runs here and answers otherwise than where it was judged: a kernel of its library is wrong."""

    code = "self_test"


class BuildError(EnvironmentProblem):
    """An engine library could not build an engine from a graph here.

    Attributes:
        node: the ONNX node that the library named, or ``None``.
        log: everything the library said, as (severity, text).
    """

    code = "build"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        path: _Path = None,
        node: str | None = None,
        log: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message, hint=hint, path=path)
        self.node = node
        self.log = log


class ResourceError(EdgekilnError):
    """Disk or memory ran out."""

    code = "resources"
    exit_code = ExitCode.RESOURCES


class OverloadedError(ResourceError):
    """A bounded queue is full: the request was not taken, and asking again later may do."""

    code = "overloaded"


class DeadlineError(ResourceError):
    """The time that a request was given ran out before its turn came; it was not run."""

    code = "deadline"
