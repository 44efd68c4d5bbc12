"""Who may import whom: runtime <- export <- pipeline, benchmarks <- pipeline; and what a bare import loads."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "runtime": {"runtime"},
    "export": {"runtime", "export"},
    "benchmarks": {"runtime", "benchmarks"},
    "pipeline": {"runtime", "export", "benchmarks", "pipeline"},
}
ENGINE_LIBRARIES = {"onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_lean", "pycuda", "cuda", "openvino"}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_layer_imports_only_layers_below(layer):
    files = sorted((ROOT / layer / "edgekiln").rglob("*.py"))
    assert files
    for path in files:
        for name in imports_of(path):
            parts = name.split(".")
            if parts[0] == "edgekiln" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[layer], f"{path} imports {name}"


def test_namespace_has_no_init():
    assert not list(ROOT.glob("*/edgekiln/__init__.py"))


def test_runtime_imports_engine_libraries_in_their_backend_only():
    for path in sorted((ROOT / "runtime").rglob("*.py")):
        if path.parent.name in {"backends", "cuda"}:
            continue
        assert not {name.split(".")[0] for name in imports_of(path)} & ENGINE_LIBRARIES, path


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
