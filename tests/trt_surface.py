"""The public surface of the TensorRT Python bindings that edgekiln supports: a table, and how it is taken.

The bindings need nine C functions of the TensorRT libraries in order to be imported, and call none of them then. So
empty stub libraries, compiled on the spot, stand in for gigabytes of TensorRT, and no GPU is needed: pybind11's
docstrings tell every signature. What this cannot tell is what a call does; only a test on a GPU can.

`python tests/trt_surface.py --regenerate` writes `tests/data/trt_api_surface.tsv` anew. Its columns: the symbol,
its kind, one column per flavour (0 = absent, else the number of its form), and the distinct forms. The form of a
callable is its overloads without types (`name=` has a default), of a property whether it can be set.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "data" / "trt_api_surface.tsv"
TIMEOUT_SECONDS = 120
UNKNOWN = "?"  # the form of a callable whose docstring tells no signature
PLAIN_TYPES = (str, int, float, tuple, list, dict)

STUB = """
void *createInferBuilder_INTERNAL(void) { return 0; }
void *createInferRefitter_INTERNAL(void) { return 0; }
void *createInferRuntime_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
void *createNvOnnxParser_INTERNAL(void) { return 0; }
void *getBuilderPluginRegistry(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void) { return 0; }
"""


@dataclass(frozen=True)
class Flavour:
    """One released set of bindings: the wheel it comes in, and the libraries its extension module asks for."""

    name: str
    distribution: str
    version: str
    package: str
    libraries: tuple[str, ...]

    @property
    def column(self) -> str:
        """The head of its column in the table."""
        return f"{self.name}={self.version}"


def _full(name: str, distribution: str, version: str) -> Flavour:
    """A release of TensorRT itself: its libraries carry the major version in their names."""
    major = version.partition(".")[0]
    libraries = tuple(f"lib{stem}.so.{major}" for stem in ("nvinfer", "nvinfer_plugin", "nvonnxparser"))
    return Flavour(name, distribution, version, "tensorrt_bindings", libraries)


FLAVOURS = (
    _full("10.3", "tensorrt-cu12-bindings", "10.3.0"),
    _full("10.13", "tensorrt-cu13-bindings", "10.13.3.9"),
    _full("10.16", "tensorrt-cu13-bindings", "10.16.1.11"),
    _full("11.4", "tensorrt-cu13-bindings", "11.4.0.106"),
    Flavour(
        "rtx",
        "tensorrt-rtx-cu13-bindings",
        "1.7.1.116",
        "tensorrt_rtx_bindings",
        ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
    ),
    Flavour(
        "lean",
        "tensorrt-lean-cu13-bindings",
        "11.4.0.106",
        "tensorrt_lean_bindings",
        ("libnvinfer_lean.so.11",),
    ),
)


@dataclass(frozen=True)
class Symbol:
    """What the flavours know by one dotted name; `forms` holds the flavours that have it."""

    kind: str
    forms: dict[str, str]


Table = dict[str, Symbol]
Surface = dict[str, tuple[str, str]]  # of one flavour: symbol to kind and form


class UnavailableError(Exception):
    """The real bindings cannot be had here; the message says why (no network, no compiler, no such wheel)."""


# ---------------------------------------------------------------------------------------------- the table


def read_table(path: Path = TABLE) -> Table:
    """The kept table; its head must name the releases of `FLAVOURS`."""
    head, *rows = path.read_text().splitlines()
    if head != _head():
        raise ValueError(f"{path} is of other releases than FLAVOURS: {head!r}; regenerate it")
    return dict(_parse_row(row) for row in rows)


def _head() -> str:
    return "\t".join(["symbol", "kind", *(flavour.column for flavour in FLAVOURS), "forms"])


def _parse_row(row: str) -> tuple[str, Symbol]:
    name, kind, *numbers, forms = row.split("\t")
    texts = forms.split(" ; ")
    return name, Symbol(
        kind,
        {
            flavour.name: texts[int(number) - 1]
            for flavour, number in zip(FLAVOURS, numbers, strict=True)
            if number != "0"
        },
    )


def write_table(table: Table, path: Path = TABLE) -> None:
    """Write the table, sorted, so that a new release shows as a readable difference."""
    rows = [_format_row(name, table[name]) for name in sorted(table)]
    path.write_text("\n".join([_head(), *rows]) + "\n")


def _format_row(name: str, symbol: Symbol) -> str:
    texts = list(dict.fromkeys(symbol.forms.values()))
    numbers = (
        str(texts.index(symbol.forms[flavour.name]) + 1) if flavour.name in symbol.forms else "0"
        for flavour in FLAVOURS
    )
    return "\t".join([name, symbol.kind, *numbers, " ; ".join(texts)])


def merge_surfaces(surfaces: dict[str, Surface]) -> Table:
    """One table of the surfaces by flavour; a symbol that changes its kind gets all kinds, joined by a slash."""
    table: Table = {}
    for name in sorted(set().union(*surfaces.values())):
        found = {flavour: surface[name] for flavour, surface in surfaces.items() if name in surface}
        kinds = dict.fromkeys(kind for kind, _ in found.values())
        table[name] = Symbol("/".join(kinds), {flavour: form for flavour, (_, form) in found.items()})
    return table


# ---------------------------------------------------------------------------------- from the real bindings


def collect_surfaces() -> dict[str, Surface]:
    """The surface of every flavour, from its wheel.

    Raises `UnavailableError` where a wheel or a compiler is not to be had. Bindings that are there and cannot be
    imported are another matter: that is a `CalledProcessError`, and the subprocess tells on stderr what happened.
    """
    if not sys.platform.startswith("linux"):
        raise UnavailableError(f"stub libraries are made for Linux, not {sys.platform}")
    with tempfile.TemporaryDirectory(prefix="trt-surface-") as folder:
        libraries = _compile_stubs(Path(folder))
        return {flavour.name: _collect(flavour, Path(folder), libraries) for flavour in FLAVOURS}


def _run(command: list[str]) -> None:
    """Run a compiler or pip; one that is missing, fails or hangs makes the bindings unavailable."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UnavailableError(f"`{' '.join(command)}` failed: {last}")


def _compile_stubs(folder: Path) -> Path:
    """A folder with one empty library for each name that a flavour's extension module asks for."""
    source = folder / "stub.c"
    source.write_text(STUB)
    libraries = folder / "libraries"
    libraries.mkdir()
    for name in sorted({name for flavour in FLAVOURS for name in flavour.libraries}):
        _run(["cc", "-shared", "-fPIC", "-o", str(libraries / name), str(source)])
    return libraries


def _collect(flavour: Flavour, folder: Path, libraries: Path) -> Surface:
    """Fetch a flavour's wheel, unpack it beside the others, and look at it in a process of its own.

    `-I` and `-S` keep an installed TensorRT out of that process, and every flavour out of this one.
    """
    unpacked = folder / flavour.name
    with zipfile.ZipFile(_download(flavour, folder / f"wheel-{flavour.name}")) as wheel:
        wheel.extractall(unpacked)
    command = [sys.executable, "-I", "-S", __file__, "--dump", str(unpacked), flavour.package]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=environment, timeout=TIMEOUT_SECONDS
    )
    return {name: (kind, form) for name, (kind, form) in json.loads(done.stdout).items()}


def _download(flavour: Flavour, folder: Path) -> Path:
    """The wheel, without what it depends on. Few retries: where there is no network, that should show soon."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    options = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--retries",
        "1",
        "--timeout",
        "15",
        "--dest",
        str(folder),
    ]
    _run([*pip, *options, f"{flavour.distribution}=={flavour.version}"])
    return next(folder.glob("*.whl"))


# ------------------------------------------------------------------------------- inside that other process


def dump_surface(folder: str, package: str) -> str:
    """Import the bindings from a folder and describe, as JSON, all they expose."""
    sys.path.insert(0, folder)
    module = __import__(package)
    surface: Surface = {"__version__": ("value", module.__version__)}
    for name in _public(module):
        _describe(name, getattr(module, name), surface)
    return json.dumps(surface)


def _public(owner: Any) -> list[str]:
    """The names that code may use; modules that the bindings imported for themselves are none."""
    names = [name for name in dir(owner) if not name.startswith("_") or name == "__init__"]
    return [name for name in names if not inspect.ismodule(getattr(owner, name))]


def _describe(name: str, value: Any, surface: Surface, owner: Any = None) -> None:
    """Put one symbol and, if it is a class, its members into the surface."""
    if isinstance(value, type):
        surface[name] = ("class", "")
        for member in _members(value):
            _describe(f"{name}.{member}", getattr(value, member), surface, value)
    elif isinstance(value, property):
        surface[name] = ("property", "get" if value.fset is None else "get set")
    elif callable(value):
        surface[name] = ("callable", _form(value, name.rpartition(".")[2]))
    elif hasattr(type(value), "__members__"):
        surface[name] = ("enum", "")
    elif owner is None or isinstance(value, PLAIN_TYPES):
        surface[name] = ("value", "")
    else:
        surface[name] = ("property", "get set")


def _members(cls: type) -> list[str]:
    """A class's members; of an enumeration only the values, since what pybind11 adds to each is always there."""
    return sorted(cls.__members__) if hasattr(cls, "__members__") else _public(cls)


def _form(value: Any, name: str) -> str:
    """The overloads of a callable, without types: `(self, strategy=) -> IExecutionContext | (self, ...)`."""
    if inspect.isfunction(value):
        return f"({', '.join(inspect.signature(value).parameters)})"
    lines = re.findall(rf"^(?:\d+\. )?{re.escape(name)}(\(.*)$", value.__doc__ or "", re.MULTILINE)
    if lines and lines[0].startswith("(*args, **kwargs)") and len(lines) > 1:
        lines = lines[1:]  # the head of a list of overloads
    return " | ".join(dict.fromkeys(_strip_types(line) for line in lines)) or UNKNOWN


def _strip_types(signature: str) -> str:
    """Of pybind11's `(self: pkg.Builder, flags: int = 0) -> pkg.X` keep `(self, flags=) -> X`."""
    inside, _, returned = signature.rpartition(" -> ")
    if not inside:
        inside, returned = signature, ""
    names = ", ".join(_strip_type(part) for part in _split(inside.strip()[1:-1]))
    cls = re.fullmatch(r"tensorrt\w*\.tensorrt\w*\.([\w.]+)", returned)
    return f"({names}) -> {cls[1]}" if cls else f"({names})"


def _split(parameters: str) -> list[str]:
    """Split at the commas that stand in no bracket: types and defaults have commas of their own."""
    parts, depth = [""], 0
    for char in parameters:
        depth += (char in "([{<") - (char in ")]}>")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _strip_type(parameter: str) -> str:
    name = re.split(r"[:=]", parameter, maxsplit=1)[0].strip()
    return f"{name}=" if re.search(r"(?<![=<>!])=(?!=)", parameter) else name


def main(arguments: list[str]) -> int:
    """`--regenerate` writes the table; `--dump FOLDER PACKAGE` is for the process that imports one flavour."""
    if arguments[:1] == ["--dump"]:
        print(dump_surface(*arguments[1:]))
        return 0
    if arguments != ["--regenerate"]:
        print("usage: python tests/trt_surface.py --regenerate", file=sys.stderr)
        return 2
    try:
        table = merge_surfaces(collect_surfaces())
    except UnavailableError as error:
        print(f"the real bindings cannot be had: {error}", file=sys.stderr)
        return 5
    write_table(table)
    print(f"{TABLE}: {len(table)} symbols")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
