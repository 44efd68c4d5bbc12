"""A program that embeds the runtime, frozen by PyInstaller without an option: edgekiln's own hook suffices."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests_support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

APP = """
import sys
import edgekiln.runtime as ek

if __name__ == "__main__":
    with ek.load(sys.argv[1], threads=1) as classifier:
        print(classifier.predict(sys.argv[2]).label, classifier.variant.backend, classifier.variant.notice)
    try:
        ek.load(sys.argv[2])
    except ek.EdgekilnError as error:
        print(error.code)
    from edgekiln.runtime.processes import module_command
    try:
        module_command("json.tool")
    except ek.EnvironmentProblem as error:
        print(error.message)
"""


# What an environment for development holds besides, and optional imports of numpy, Pillow and onnxruntime would take
# along. An environment that holds the runtime alone has none of it.
NOT_THE_RUNTIMES = (
    "torch", "onnx", "matplotlib", "scipy", "sympy", "pandas", "sklearn", "psutil", "tkinter", "IPython", "pytest",
    "setuptools", "openvino", "modelopt", "onnxscript", "ml_dtypes", "google", "coloredlogs",
)  # fmt: skip


def write_entry_points(folder):
    """Distribution metadata with the entry points that pyproject.toml tells: what an installation of today has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    about = folder / "edgekiln-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: edgekiln\nVersion: 0\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n{name} = {value}\n" for group, of in groups for name, value in of.items()]
    (about / "entry_points.txt").write_text("".join(lines))


@pytest.mark.slow
def test_a_frozen_program_predicts(tmp_path, tiny_run):
    if find_spec("PyInstaller") is None:
        pytest.skip("NOT TESTED: PyInstaller is not installed (the extra dev brings it)")
    if shutil.which("objdump") is None:
        pytest.skip("NOT TESTED: PyInstaller needs objdump (binutils)")
    (tmp_path / "app.py").write_text(APP)
    write_entry_points(tmp_path / "installed")
    path = os.pathsep.join([str(tmp_path / "installed"), *(str(Path(p).absolute()) for p in sys.path if p)])
    leave_out = [word for name in NOT_THE_RUNTIMES for word in ("--exclude-module", name)]
    command = [
        sys.executable,
        "-m",
        "PyInstaller",
        "--noconfirm",
        "--log-level",
        "WARN",
        *leave_out,
        "app.py",
    ]
    environment = {**os.environ, "PYTHONPATH": path, "PYINSTALLER_CONFIG_DIR": str(tmp_path / "cache")}
    frozen = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert frozen.returncode == 0, frozen.stderr[-3000:]
    program, picture = tmp_path / "dist/app/app", tiny_run[0].parent / "pictures/red/003.png"
    nothing = {"PATH": "/usr/bin:/bin"}  # no import path of ours: all that it needs is in its folder
    done = subprocess.run(
        [program, tiny_run[2].bundle, picture],
        env=nothing,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.splitlines()
    assert said[0].split() == ["red", "onnxruntime-cpu"], (
        done.stderr
    )  # no notice: the kind of machine is known
    assert said[1] == "usage"
    assert said[2].endswith("is a frozen program.")
