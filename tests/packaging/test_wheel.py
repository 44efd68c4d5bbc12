import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from release.distributions import Distributions, build_distributions, check_metadata
from release.roles import ROLES, CleanEnvironment, Inputs, try_role
from tests_support import ROOT

RUNTIME_SMOKE = """
import sys
import edgekiln.runtime as ek
import numpy, numpy as np
bundle, picture = sys.argv[1:]
with ek.load(bundle) as classifier:
    assert classifier.predict(picture).label == 'red', classifier.predict(picture)
    frames = np.stack([ek.prepare(picture, classifier.contract)])
    assert classifier.session.run(frames).shape == (1, 3)
unwanted = {'torch', 'onnx', 'pydantic', 'click', 'rich', 'scipy', 'matplotlib'} & set(sys.modules)
assert not unwanted, unwanted
print(sys.version_info[:2], numpy.__version__)
"""


PACKAGES = {
    "runtime": "backends bundles cuda onnx_files pictures serving serving/batching",
    "export": "audits audits/engine_layers audits/layers engines precision precision/qdq_lint "
    "precision/qdq_lint/rules precision/repair qat",
    "benchmarks": "comparing costs costs/energy endurance judging report report/charts report/templates timing "
    "timing/loadgen",
    "pipeline": "cli data data/folders device device/remote doctor gpu_suite proof recipe shipping "
    "shipping/pyinstaller shipping/server shipping/server/page shipping/triton stages study training variants "
    "workspace",
}
"""Folders of the wheel, by root: what only developers run is not among them."""


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> Distributions:
    return build_distributions(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def wheel(distributions) -> Path:
    return distributions.wheel


def test_wheel_holds_the_four_parts_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = {
        f"edgekiln/{path.relative_to(ROOT / part / 'edgekiln').as_posix()}"
        for part in PACKAGES
        for path in (ROOT / part / "edgekiln").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {n for n in names if ".dist-info/" not in n} == expected
    assert "edgekiln/__init__.py" not in names
    folders = {str(PurePosixPath(name).parent) for name in names if ".dist-info/" not in name}
    named = {
        f"edgekiln/{root}/{folder}".rstrip("/")
        for root in PACKAGES
        for folder in ("", *PACKAGES[root].split())
    }
    assert folders == named | {"edgekiln"}
    for part in PACKAGES:
        assert f"edgekiln/{part}/py.typed" in names
    assert "edgekiln/benchmarks/report/templates/page.html" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    demo = zipfile.ZipFile(wheel).read("edgekiln/pipeline/traffic-lights.toml")  # a link in the checkout
    assert demo == (ROOT / "recipes" / "traffic-lights.toml").read_bytes()


def test_metadata_promises_the_extras_and_a_small_base(wheel):
    archive = zipfile.ZipFile(wheel)
    [name] = [n for n in archive.namelist() if n.endswith("METADATA")]
    metadata = Parser().parsestr(archive.read(name).decode())
    extras = {"onnx", "gpu", "build", "modelopt", "tensorrt", "rtx", "lean", "pycuda", "demo", "dev"}
    extras |= {"nvml", "mlperf", "openvino", "litert", "ncnn", "serve", "sign", "digits", "simplejpeg"}
    extras |= {"tensorboard"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    base = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert {r.split(">")[0].lower() for r in base if ";" not in r} == {"numpy", "pillow", "click", "rich"}
    assert [r for r in base if ";" in r] == ["tomli>=2.0; python_version < '3.11'"]  # newer Pythons have it
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"


def test_the_sdist_holds_what_the_documents_and_the_makefile_name(distributions):
    with tarfile.open(distributions.sdist) as archive:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    assert {"Makefile", "CHANGELOG.md", "LICENSE", "docs/README.md", "recipes/traffic-lights.toml"} <= names
    assert {"tests/conftest.py", "tests/release/__main__.py", "tests/data/trt_api_surface.tsv"} <= names
    assert not [
        name for name in names if name.startswith((".venv", "runs", ".cache")) or "__pycache__" in name
    ]


def test_twine_has_no_complaint(distributions):
    check_metadata(distributions)


@pytest.mark.slow
@pytest.mark.parametrize(
    "role", ["embed", "benchmark"]
)  # `make wheel` tries the third too, which installs torch
def test_a_role_is_played_with_the_wheel_and_uninstalling_leaves_nothing(role, wheel, tiny_run, tmp_path):
    """As `make wheel` does it; what the wheel depends on is borrowed, so that no network is needed."""
    environment = CleanEnvironment(tmp_path, borrowed=Path(sysconfig.get_path("purelib")))
    inputs = Inputs(tiny_run[0].parent / "pictures", tiny_run[0], tiny_run[2].bundle)
    try_role(ROLES[role], wheel, environment, inputs, ["--no-index", "--no-deps"])
    (environment.folder / "bin" / "edgekiln").touch()
    assert environment.leftovers() == [environment.folder / "bin" / "edgekiln"]


def find_python(version: str) -> str | None:
    """An interpreter of that version: on the PATH, or kept by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in filter(None, candidates):
        done = subprocess.run(
            [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,  # a shim of pyenv fails where its version is not selected
        )
        if done.stdout.strip() == version:
            return candidate
    return None


@pytest.mark.slow
def test_runtime_alone_works_on_the_oldest_python_and_numpy(wheel, tiny_run, tmp_path):
    """A product's venv: the wheel and onnxruntime, no torch, onnx or pydantic."""
    python = find_python("3.10")
    if python is None:
        pytest.skip("no Python 3.10 on this machine")
    venv = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "--disable-pip-version-check"]
    # Compiled is what is imported, and not all that is installed.
    subprocess.run([*pip, "install", "-q", "--no-compile", f"{wheel}[onnx]", "numpy==1.26.4"], check=True)
    picture = tiny_run[0].parent / "pictures" / "red" / "003.png"
    done = subprocess.run(
        [venv / "bin" / "python", "-W", "error", "-c", RUNTIME_SMOKE, tiny_run[2].bundle, picture],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(")") == ["(3, 10", " 1.26.4\n"]
    done = subprocess.run(
        [venv / "bin" / "edgekiln", "run", ROOT / "recipes" / "traffic-lights.toml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 5
    assert "Run: pip install 'edgekiln[build]'" in done.stderr
    done = subprocess.run(
        [venv / "bin" / "edgekiln", "predict", tiny_run[2].bundle, picture],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert " red " in done.stdout
