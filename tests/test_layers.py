"""The house: who may import whom, how large a room may be, and what a bare import loads."""

import ast
import importlib
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from documents import DOCUMENTS
from layers import ROOTS, allowed, arrows, circles, imported_names, modules, wing_of, written
from tests_support import ROOT

ENGINE_LIBRARIES = {"onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_lean", "pycuda", "cuda", "openvino"}
MOST_ENTRIES, MOST_LINES, MOST_FUNCTION_LINES = 16, 450, 45


def test_no_module_imports_itself_by_way_of_others():
    assert circles(arrows()) == []


def test_the_table_of_wings_is_free_of_circles():
    assert circles(allowed()) == []


def test_the_table_names_every_wing_and_no_other():
    folders = {
        f"{root}/{path.parent.name}"
        for root in ROOTS
        for path in (ROOT / root / "edgekiln" / root).glob("*/__init__.py")
    }
    named = {row for row in allowed() if "/" in row}
    own = {f"{root}/{path.stem}" for root in ROOTS for path in (ROOT / root / "edgekiln" / root).glob("*.py")}
    assert named - own == folders
    assert set(allowed()) - named == set(ROOTS)


def test_the_map_stays_a_map():
    assert (ROOT / "ARCHITECTURE.md").read_text("utf-8").count("\n") <= 150


GROUND = {"runtime": "errors", "export": "to_onnx", "benchmarks": "environment", "pipeline": "capacity"}


def test_in_the_picture_a_wing_imports_only_wings_on_lower_lines():
    picture = (ROOT / "ARCHITECTURE.md").read_text("utf-8").split("```")[1]
    line_of = {word: number for number, line in enumerate(picture.splitlines()) for word in line.split()}
    place = {
        row: line_of[GROUND.get(row, row.rpartition("/")[2])]
        for row in allowed()
        if row != "runtime/__init__"
    }
    arrows_up = [
        (wing, other)
        for wing, others in allowed().items()
        for other in others
        if wing in place and other in place and place[wing] >= place[other]
    ]
    assert arrows_up == []


@pytest.mark.parametrize("wing", sorted(allowed()))
def test_a_wing_imports_what_the_table_allows(wing):
    rows = allowed()
    members = {name: found for name, found in arrows().items() if wing_of(name, rows) == wing}
    assert members
    used = {
        (name, other): wing_of(other, rows)
        for name, found in members.items()
        for other in found
        if wing_of(other, rows) != wing
    }
    assert {arrow for arrow, other in used.items() if other not in rows[wing]} == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import edgekiln.runtime.spec", "edgekiln.runtime.spec"),
        ("def f():\n    from edgekiln.runtime import spec", "edgekiln.runtime.spec"),
        (
            "if TYPE_CHECKING:\n    from edgekiln.runtime.spec import Frames",
            "edgekiln.runtime.spec.Frames",
        ),
        ("factory = 'edgekiln.runtime.spec:Frames'", "edgekiln.runtime.spec"),
    ],
)
def test_an_import_is_seen_wherever_it_stands(tmp_path, code, found):
    (tmp_path / "module.py").write_text(code)
    assert list(imported_names(tmp_path / "module.py")) == [found]


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}}) == []


@pytest.mark.parametrize("wing", sorted(row for row in allowed() if "/" in row))
def test_a_wings_docstring_says_what_the_table_says(wing):
    root, name = wing.split("/")
    path = ROOT / root / "edgekiln" / root / name / "__init__.py"
    if path.exists():
        told = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("May import: ")[2]
        assert re.findall(r"``([^`]+)``", told) == written()[wing]


def test_a_root_has_few_entries_at_its_own_level():
    for root in ROOTS:
        entries = [
            path.name
            for path in (ROOT / root / "edgekiln" / root).iterdir()
            if path.name not in {"__init__.py", "__pycache__"} and (path.is_dir() or path.suffix == ".py")
        ]
        assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_no_module_and_no_function_is_too_long():
    long = []
    for name, path in modules().items():
        text = path.read_text("utf-8")
        if text.count("\n") > MOST_LINES:
            long.append(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    long.append(f"{name}.{node.name}: {lines} lines")
    assert long == []


def test_every_package_says_who_lives_there():
    for name, path in modules().items():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), name


def test_namespace_has_no_init():
    assert not list(ROOT.glob("*/edgekiln/__init__.py"))


def test_runtime_imports_engine_libraries_in_their_backend_only():
    for path in sorted((ROOT / "runtime").rglob("*.py")):
        if {"backends", "cuda"} & {*path.parts}:
            continue
        assert not {name.split(".")[0] for name in imported_names(path)} & ENGINE_LIBRARIES, path


# -- names of modules and files, wherever they are written


_WRITTEN = re.compile(r"\bedgekiln\.(?:runtime|export|benchmarks|pipeline)(?:\.\w+)+")
_NOT_MODULES = {"edgekiln.runtime.cuda.pycuda"}  # imports a package that few machines have


def _texts():
    """Every text file of the project in which a module may be named; the changelog tells of former ones."""
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    endings = {".py", ".md", ".toml", ".yml", ".html", ""}
    return [
        path
        for name in listed
        if (path := ROOT / name).suffix in endings and path.is_file() and path.name != "CHANGELOG.md"
    ]


def test_every_module_that_is_named_anywhere_is_there():
    """In strings, too: workers that are started with ``-m``, factories, names that tests replace."""
    texts = _texts()
    assert len(texts) > 300, "not a checkout"
    lost = {}
    for path in texts:
        for name in set(_WRITTEN.findall(path.read_text("utf-8"))) - _NOT_MODULES:
            if not _resolves(name):
                lost.setdefault(name, []).append(path.name)
    assert lost == {}


def _resolves(name):
    """Whether it is a module, or something in one; as much of it as can be imported without its libraries."""
    parts = name.split(".")
    known = next(i for i in range(len(parts), 1, -1) if ".".join(parts[:i]) in {*modules(), *_packages()})
    if known == len(parts):
        return True
    target = importlib.import_module(".".join(parts[:known]))
    for part in parts[known:]:
        if not hasattr(target, part):
            return False
        target = getattr(target, part)
    return True


def _packages():
    return {f"edgekiln.{root}" for root in ROOTS}


_FROM = re.compile(r"^\s*from (edgekiln[\w.]*) import (\([^)]*\)|.+)$", re.MULTILINE)


def test_every_import_in_a_document_works():
    imports = [
        (document.name, module, name.split(" as ")[0].strip())
        for document in DOCUMENTS
        for module, names in _FROM.findall(document.read_text("utf-8"))
        for name in names.strip("()").split(",")
    ]
    assert len(imports) > 5
    for document, module, name in imports:
        assert hasattr(importlib.import_module(module), name), f"{document}: from {module} import {name}"


_PATHS = re.compile(r"`((?:runtime|export|benchmarks|pipeline|tests|docs|recipes)/[\w./*-]*)`")


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/decisions"])
def test_every_path_that_a_map_names_exists(page):
    """``runtime/bundles`` is short for ``runtime/edgekiln/runtime/bundles``."""
    pages = sorted((ROOT / page).glob("*.md")) if (ROOT / page).is_dir() else [ROOT / page]
    named = {(path, name) for path in pages for name in _PATHS.findall(path.read_text("utf-8"))}
    assert named
    lost = []
    for path, name in sorted(named):
        root, _, rest = name.partition("/")
        places = [name, f"{root}/edgekiln/{root}/{rest}", f"{root}/edgekiln/{root}/{rest}.py"]
        if "NAME" not in name and not any(list(ROOT.glob(place.rstrip("/"))) for place in places):
            lost.append(f"{path.name}: {name}")
    assert lost == []


# -- what an import loads


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import edgekiln.runtime", {"edgekiln"}),
        ("import edgekiln.runtime.errors", {"edgekiln"}),
        ("from edgekiln.runtime import *", {"edgekiln", "numpy"}),
    ],
)
def test_import_loads_numpy_at_most(statement, loaded):
    code = (
        f"import sys; before = set(sys.modules)\n{statement}\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(loaded - set(sys.stdlib_module_names)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert set(out.split()) == loaded


def test_every_public_name_of_the_runtime_is_there():
    import edgekiln.runtime as runtime

    names = {*runtime.__all__} - {"__version__"}
    assert all(getattr(runtime, name).__name__ == name for name in names)
    assert runtime.__version__ == version("edgekiln")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = runtime.lode


def test_type_checkers_see_the_public_names_of_the_table():
    import edgekiln.runtime as runtime

    path = ROOT / "runtime" / "edgekiln" / "runtime" / "__init__.py"
    seen = {
        f"{node.module}.{alias.asname}"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edgekiln")
        for alias in node.names
    }
    assert seen == {f"edgekiln.runtime.{module}.{name}" for name, module in runtime._MODULE_OF.items()}
