"""`edgekiln doctor`: each check on machines laid out in folders, and the whole on this one."""

import getpass
import json
import re
import shutil
import socket
import subprocess
import sys
from importlib.metadata import metadata, requires, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests_support import ROOT

from edgekiln.pipeline.cli import main
from edgekiln.pipeline.cli.doctor import doctor
from edgekiln.pipeline.doctor import (
    _hide,
    _private_names,
    _run_check,
    bundles,
    gpu,
    jetson,
    libraries,
    machine,
    packages,
    storage,
)
from edgekiln.pipeline.doctor.advisories import ADVISORIES, find_exposure
from edgekiln.pipeline.doctor.child import ask_child
from edgekiln.pipeline.doctor.row import fail
from edgekiln.pipeline.doctor.tiny_model import SIDE, make_tiny_model
from edgekiln.pipeline.doctor.versions import is_within, parse_release, parse_requirements

NO_GPU = gpu.Gpus("There is no NVIDIA driver: libcuda.so.1 is not found.")


@pytest.fixture
def edgekiln(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def root(tmp_path):
    """Lays out the files of some machine; relative path to text."""

    def lay_out(files):
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "root"

    return lay_out


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder at the front of the import path, here and in children; makes modules and distributions in it."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))

    class Site:
        def module(self, name, text):
            (folder / f"{name}.py").write_text(text)

        def distribution(self, name, version):
            info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return Site()


# -- the whole


def test_this_machine_passes_and_names_nobody(edgekiln, tiny_run):
    code, out, _ = edgekiln("doctor", tiny_run[2].bundle, "--json")
    document = json.loads(out)
    rows = {row["name"]: row for row in document["rows"]}
    failed = [row["name"] for row in document["rows"] if row["state"] == "FAIL"]
    assert (code, document["ok"], "error" in document) == (5 if failed else 0, not failed, bool(failed))
    assert document["counts"] == {
        state: sum(row["state"] == state for row in document["rows"]) for state in ("OK", "WARN", "FAIL")
    }
    assert rows["provider CPU"]["found"] == "created, and computes a tiny model right"
    assert f"numpy {np.__version__}" in rows["core packages"]["found"]
    assert rows["bundle"]["found"] == "tiny, whole, 2 variants; passed and load here: fp32, int8"
    told = "onnxruntime-cpu, verdict pass: loads and runs here, answers 16 made pictures as where it was judged ("
    assert rows["variant int8"]["found"].startswith(told)
    private = {str(Path.home()), socket.gethostname(), getpass.getuser()} - {"root", "localhost"}
    assert [word for word in private if re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", out)] == []


def test_a_variant_whose_library_crashes_is_found_beforehand(site, tiny_run):
    site.module("onnxruntime", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    head, *variants = bundles.check_bundle(tiny_run[2].bundle)
    assert "none that passed its gate loads here" in head.found
    assert [row.state for row in variants] == ["FAIL", "FAIL"]
    for row in variants:
        assert row.found.endswith("does not load here: the library ended the process with SIGSEGV")
        assert "another version of its library" in row.fix


def test_text_is_aligned_plain_and_ends_with_the_counts(edgekiln):
    code, out, err = edgekiln("doctor")
    *rows, counts = out.splitlines()
    assert (code in {0, 5}, err) == (True, "")
    assert out.isascii()
    assert {row[:6] for row in rows} <= {"OK    ", "WARN  ", "FAIL  ", "      "}
    starts = {row.index("->") for row in rows if row.startswith(" ")}
    name, found = "python", rows[0].index("CPython")
    assert rows[0].startswith(f"OK    {name}")
    assert starts <= {found}
    assert counts.startswith(f"{sum(row.startswith('OK') for row in rows)} OK, ")


def test_a_failed_check_exits_5_and_json_says_which(edgekiln, site):
    site.module("tensorrt_dispatch", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    code, out, _ = edgekiln("doctor", "--json")
    document = json.loads(out)
    assert (code, document["ok"], document["error"]["code"]) == (5, False, "environment")
    assert "tensorrt-dispatch" in document["error"]["message"]
    assert document["error"]["hint"]
    [row] = [row for row in document["rows"] if row["name"] == "tensorrt-dispatch"]
    assert "ended the process with SIGSEGV" in row["found"]


def test_runs_where_only_the_runtime_is_installed():
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'pydantic', 'onnx', 'timm', 'jinja2', 'safetensors',"
        " 'tomli', 'scipy', 'packaging'): sys.modules[name] = None\n"
        "from edgekiln.pipeline.cli import main\n"
        "main(['doctor'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode in {0, 5}, done.stderr) == (True, "")
    assert "provider CPU" in done.stdout


@pytest.mark.parametrize("arguments", [["nowhere"], ["."]])
def test_a_bundle_that_is_none_is_a_mistake_of_usage(edgekiln, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert edgekiln("doctor", *arguments)[0] == 2


def test_help_loads_nothing_heavy_and_shows_an_example():
    code = (
        "import sys\nfrom edgekiln.pipeline.cli import main\n"
        "try: main(['doctor', '--help'])\nexcept SystemExit: pass\n"
        "print(*sorted({'numpy', 'torch', 'onnxruntime', 'rich', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "edgekiln doctor runs/traffic-lights/bundle" in done.stdout
    assert done.stderr.strip() == ""


def test_a_check_that_fails_itself_is_a_row():
    def check_nothing():
        raise ZeroDivisionError("oops")

    [row] = _run_check(check_nothing)
    assert (row.name, row.state) == ("nothing", "FAIL")
    assert "this check failed itself: ZeroDivisionError: oops" in row.found


def test_home_user_and_host_are_replaced_in_every_row(monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/home/ada"))
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    row = _hide(fail("x", "/home/ada/runs on laptop", "ask ada; adamant laptops"), _private_names())
    assert (row.found, row.fix) == ("~/runs on HOST", "ask USER; adamant laptops")


# -- the child


def test_what_a_library_prints_does_not_reach_the_answer(site):
    site.module("loud", "import os\nprint('hello')\nos.write(1, b'raw')\n__version__ = '3.1'\n")
    answer = ask_child("import", "loud")
    assert (answer.values, answer.problem) == ({"version": "3.1"}, None)
    assert "raw" in answer.log


def test_a_library_that_hangs_or_exits_is_a_problem(site):
    site.module("slow", "import time\ntime.sleep(60)\n")
    site.module("quits", "import os\nos._exit(7)\n")
    assert "did not answer within 1 s" in ask_child("import", "slow", seconds=1).problem
    assert "exit code 7" in ask_child("import", "quits").problem


def test_the_child_has_a_home_of_its_own_and_no_telemetry(site):
    site.module(
        "curious", "import os\n__version__ = os.environ['HOME'] + os.environ['ORT_DISABLE_TELEMETRY']\n"
    )
    answer = ask_child("import", "curious")
    assert answer.values["version"].endswith("1")
    assert not Path(answer.values["version"][:-1]).exists()
    assert str(Path.home()) not in answer.values["version"]


# -- the tiny model


def test_the_tiny_model_is_valid_onnx_and_means_colours():
    import onnx
    import onnxruntime

    onnx.checker.check_model(onnx.load_from_string(make_tiny_model()), full_check=True)
    session = onnxruntime.InferenceSession(make_tiny_model(), providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    logits = session.run(["logits"], {"image": frames})[0]
    np.testing.assert_allclose(logits, frames.mean((1, 2)), rtol=1e-6)  # 64 float32 additions


# -- packages


def test_every_requirement_of_the_project_is_understood():
    from packaging.requirements import Requirement

    extras = metadata("edgekiln").get_all("Provides-Extra")
    lines = [
        line
        for line in requires("edgekiln")
        if (marker := Requirement(line).marker) is None or any(marker.evaluate({"extra": e}) for e in extras)
    ]
    parsed = parse_requirements(requires("edgekiln"))
    for line, ours in zip(lines, parsed, strict=True):
        theirs = Requirement(line)
        assert ours.name == theirs.name
        for candidate in ("0.1", "0.47", "0.47.9", "0.48", "1.7.1.116", "2.0", "10.3", "2027.1", "0.1.0"):
            assert is_within(candidate, ours.range) == theirs.specifier.contains(candidate), line


@pytest.mark.parametrize(
    ("marker", "here"),
    [
        ("python_version < '3.10'", False),
        ("python_version >= '3.10'", True),
        ("python_version == '3.9'", False),
        ("platform_machine == 'vax'", False),
        ("extra == 'build'", True),
        ("extra == 'build' and python_version < '3.10'", False),
    ],
)
def test_what_is_for_another_python_or_machine_is_not_asked_for(marker, here):
    assert bool(parse_requirements([f"tomli>=2.0; {marker}"])) == here


def test_releases_are_numbers():
    assert parse_release("2.14.1+cu130") == (2, 14, 1)
    assert parse_release("10.3.0") == (10, 3)
    assert parse_release("1.10") > parse_release("1.9.9")
    assert is_within("13.0.0rc1", "")


def test_a_package_out_of_range_is_told_with_the_range(site):
    site.distribution("timm", "0.9.2")
    [row] = [row for row in packages.check_packages() if row.name == "extra build"]
    assert row.state == "WARN"
    assert row.found == "timm 0.9.2, wanted >=1.0.15"
    assert row.fix == "Run: pip install --upgrade 'edgekiln[build]'"


def test_a_core_package_out_of_range_fails(site):
    site.distribution("numpy", "1.20.0")
    [row] = [row for row in packages.check_packages() if row.name == "core packages"]
    assert (row.state, row.found) == ("FAIL", "numpy 1.20.0, wanted >=1.26")


@pytest.mark.parametrize(
    ("names", "product"),
    [
        (["onnxruntime", "onnxruntime-gpu"], "'edgekiln[onnx]'"),
        (["tensorrt-cu12", "tensorrt-cu13"], "then one of them"),
        (["tensorrt-rtx-cu12", "tensorrt-rtx-cu13"], "'edgekiln[rtx]'"),
    ],
)
def test_distributions_that_overwrite_each_other_fail(site, names, product):
    for name in names:
        site.distribution(name, "1.0")
    [row] = packages.check_clashes()
    assert row.state == "FAIL"
    assert all(name in row.found for name in names)
    assert f"pip uninstall -y {' '.join(names)}" in row.fix
    assert product in row.fix


def test_no_clash_is_said_to_be_none_of_those_that_are_known():
    [row] = packages.check_clashes()
    assert (row.state, row.found[:12]) == ("OK", "none between")


# -- libraries

FAKE_ORT = """
import sys
__version__ = "9.9"
def get_available_providers():
    return [{name!r}, "CPUExecutionProvider"]
class InferenceSession:
    def __init__(self, model, providers):
        self.given = providers[0]
        if self.given != "CPUExecutionProvider":
            print("2026-01-01 [E:onnxruntime:Default, bridge.cc:1 load] Failed to load libcudnn.so.9", file=sys.stderr)
            self.given = "CPUExecutionProvider"
    def get_providers(self):
        return [self.given]
    def run(self, outputs, inputs):
        return [inputs["image"].mean((1, 2)) + {shift}]
"""


@pytest.mark.parametrize(
    ("name", "gpu_here", "state"),
    [
        ("CUDAExecutionProvider", True, "FAIL"),
        ("CUDAExecutionProvider", False, "WARN"),
        ("TensorrtExecutionProvider", True, "WARN"),
    ],
)
def test_a_provider_that_is_listed_and_not_given_is_told_with_the_librarys_reason(
    site, name, gpu_here, state
):
    site.module("onnxruntime", FAKE_ORT.format(name=name, shift=0))
    head, row, cpu = libraries.check_onnxruntime(gpu_here)
    assert head.found == f"9.9, lists {name}, CPUExecutionProvider"
    assert row.state == state
    assert "listed, but CPUExecutionProvider was given (Failed to load libcudnn.so.9)" in row.found
    assert row.fix
    assert cpu.state == "OK"


def test_a_provider_that_computes_wrong_fails(site):
    site.module("onnxruntime", FAKE_ORT.format(name="CPUExecutionProvider", shift=1))
    assert libraries.check_onnxruntime(False)[1].found == "created, and computes a tiny model wrong"


def test_a_library_built_for_another_numpy_is_named_as_that(site):
    site.module(
        "onnxruntime", "raise ImportError('A module that was compiled using NumPy 1.x cannot be run')\n"
    )
    [row] = libraries.check_onnxruntime(False)
    assert (row.state, row.found) == ("FAIL", f"it was built for another NumPy than {version('numpy')}")


@pytest.mark.parametrize(
    ("library", "processor", "libc", "bits", "words"),
    [
        ("onnxruntime", "x86_64", ("glibc", "2.36"), 64, None),
        ("openvino", "aarch64", ("glibc", "2.35"), 64, None),
        ("openvino", "aarch64", ("glibc", "2.31"), 64, "need glibc 2.35, this system has 2.31"),
        ("onnxruntime", "aarch64", ("glibc", "2.31"), 64, None),
        ("onnxruntime", "aarch64", ("glibc", "2.4"), 64, "need glibc 2.28, this system has 2.4"),  # not 2.40
        ("onnxruntime", "x86_64", ("", ""), 64, "for musl"),
        ("openvino", "aarch64", ("musl", "1.2.5"), 64, "for musl"),
        ("onnxruntime", "armv7l", ("glibc", "2.36"), 32, "for a 32-bit Python"),
        (
            "onnxruntime",
            "aarch64",
            ("glibc", "2.36"),
            32,
            "for a 32-bit Python",
        ),  # 32-bit programs, 64-bit kernel
        ("openvino", "riscv64", ("glibc", "2.39"), 64, "for riscv64"),
    ],
)
def test_a_library_that_has_no_wheel_for_this_system_is_told(
    monkeypatch, library, processor, libc, bits, words
):
    monkeypatch.setattr(libraries.platform, "machine", lambda: processor)
    monkeypatch.setattr(libraries.platform, "libc_ver", lambda: libc)
    monkeypatch.setattr(libraries.sys, "maxsize", 2 ** (bits - 1) - 1)
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(libraries, "tool_versions", lambda names: {})
    if library == "onnxruntime":
        [row] = libraries.check_onnxruntime(False)
        assert (row.state, row.found) == ("WARN", "not installed")
        assert (words or "pip install 'edgekiln[onnx]'") in row.fix
    else:
        rows = libraries.check_openvino()
        assert [row.state for row in rows] == ["OK"] * (words is not None)
        assert all(words in row.found for row in rows)


def test_pycuda_that_cannot_be_imported_matters_only_with_a_gpu(site, tmp_path):
    site.distribution("pycuda", "2026.1")
    (tmp_path / "site" / "pycuda").mkdir()
    (tmp_path / "site" / "pycuda" / "__init__.py").touch()
    (tmp_path / "site" / "pycuda" / "driver.py").write_text("raise ImportError('libcuda.so.1: not found')\n")
    assert [row.state for gpu_here in (True, False) for row in libraries.check_pycuda(gpu_here)] == [
        "FAIL",
        "WARN",
    ]


# -- GPU


def test_no_driver_is_a_fault_only_where_there_is_a_device(root):
    [row] = gpu.check_driver(NO_GPU, root({"etc/hostname": "x"}))
    assert (row.state, "engines for GPUs cannot run here" in row.found) == ("OK", True)
    machine_with_gpu = root(
        {
            "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n",
        }
    )
    [row] = gpu.check_driver(NO_GPU, machine_with_gpu)
    assert row.state == "FAIL"
    assert "an NVIDIA device is here; There is no NVIDIA driver" in row.found
    assert "docker run --gpus all" in row.fix


def test_an_nvidia_sound_card_is_no_gpu(root):
    folder = "sys/bus/pci/devices/0000:01:00.1"
    [row] = gpu.check_driver(NO_GPU, root({f"{folder}/vendor": "0x10de", f"{folder}/class": "0x040300"}))
    assert row.state == "OK"


def test_driver_gpu_and_cuda_packages_are_told(root, site):
    device = {
        "name": "NVIDIA Jetson Orin", "compute_capability": [8, 7], "multiprocessors": 16,
        "total_memory": 8 * 2**30, "integrated": True,
    }  # fmt: skip
    gpus = gpu.Gpus(None, (12, 6), (device,))
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n"
    driver, card = gpu.check_driver(gpus, root({"proc/driver/nvidia/version": text}))
    assert driver.found == "540.4.0, CUDA up to 12.6"
    assert card.found == "NVIDIA Jetson Orin, SM 87, 16 multiprocessors, 8.0 GiB (shares the host's memory)"
    site.distribution("nvidia-cuda-runtime", "13.0.1")
    row = gpu.check_cuda_packages(gpus)
    assert row.state == "FAIL"
    assert "the driver knows CUDA up to 12.6" in row.found
    assert gpu.check_cuda_packages(gpu.Gpus(None, (13, 0))).state == "OK"


@pytest.mark.parametrize(
    ("release", "exposure", "count"),
    [
        ("10.3.0", "affected", 5),
        ("10.16.0.72", "affected", 5),
        ("10.16.1", "affected", 4),
        ("10.16.1.11", "affected", 4),
        ("10.16.2.10", "unclear", 4),
        ("11.0.0.114", "no entry", 0),
        ("11.4.1", "no entry", 0),
    ],
)
def test_releases_against_the_table_of_advisories(release, exposure, count):
    got, entries = find_exposure(release)
    assert (got, len(entries)) == (exposure, count)


def test_every_advisory_is_cited_and_ordered():
    assert len({a.cve for a in ADVISORIES}) == len(ADVISORIES) == 5
    for advisory in ADVISORIES:
        assert advisory.source.startswith("https://github.com/NVIDIA/product-security/tree/main/2026/")
        assert parse_release(advisory.last_affected or "0") < parse_release(advisory.fixed)


def test_a_vulnerable_tensorrt_warns_with_numbers_sources_and_the_mended_release(site):
    site.module("tensorrt_dispatch", "__version__ = '10.3.0'\n")
    imported, advisories = [row for row in gpu.check_tensorrt() if row.name.startswith("tensorrt-dispatch")]
    assert (imported.state, imported.found) == ("OK", "10.3.0, imports")
    assert advisories.state == "WARN"
    assert all(advisory.cve in advisories.found for advisory in ADVISORIES)
    assert "tree/main/2026/5855" in advisories.found
    assert "TensorRT 11.0 or newer" in advisories.fix


def test_a_release_without_entry_is_not_called_safe(site):
    site.module("tensorrt_dispatch", "__version__ = '11.4.0'\n")
    rows = [row for row in gpu.check_tensorrt() if row.name.endswith("advisories")]
    assert all(row.found.startswith("no entry in this table") for row in rows)


# -- Jetson

ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": (
        "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n"
    ),
}


def test_jetson_release_and_power_mode_are_read_from_files(root):
    release, power, _ = jetson.check_jetson(root(ORIN))
    assert (release.state, release.found) == ("OK", "6.2 (L4T 36.4.3)")
    assert (power.state, power.found[:13]) == ("WARN", "25W (mode 1):")
    assert "nvpmodel -m" in power.fix
    _, power, _ = jetson.check_jetson(root({"var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull"}))
    assert (power.state, power.found) == ("OK", "MAXN_SUPER (mode 2)")


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        ("# R39 (release), REVISION: 2.0, GCID: 1", ("39.2.0", "7.2")),
        ("# R38 (release), REVISION: 4.0, GCID: 1", ("38.4.0", "7.1")),
        ("# R35 (release), REVISION: 3.1, GCID: 1", ("35.3.1", None)),
        ("something else", ("of unknown release", None)),
    ],
)
def test_jetpack_of_a_release(root, release, jetpack):
    assert jetson.read_jetpack(root({"etc/nv_tegra_release": release})) == jetpack


def test_no_jetson_no_rows(root):
    assert jetson.check_jetson(root({"etc/hostname": "x"})) == []


def test_a_venv_that_does_not_see_the_systems_tensorrt_fails(root, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    row = jetson.check_jetson(root(ORIN))[2]
    assert (row.state, row.fix) == ("FAIL", "Run: sudo apt install nvidia-jetpack")
    here = f"python3.{sys.version_info.minor}"
    row = jetson.check_jetson(root({f"usr/lib/{here}/dist-packages/tensorrt/__init__.py": ""}))[2]
    assert row.found == "installed, and this virtual environment does not see it"
    assert f"{here} -m venv --system-site-packages" in row.fix
    shutil.move(root({}) / "usr/lib" / here, root({}) / "usr/lib/python3.8")
    row = jetson.check_jetson(root({}))[2]
    assert row.found == f"it is for python3.8 and this is {here}"
    assert "python3.8 -m venv --system-site-packages" in row.fix


# -- machine


@pytest.mark.parametrize(
    ("line", "state", "words"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni", "OK", "nothing saturates"),
        ("flags : avx2 avx_vnni", "OK", "nothing saturates"),
        ("flags : fpu avx2", "OK", "added in 16 bits and saturate"),
        ("Features : fp asimd asimddp", "OK", "dotprod or i8mm"),
        ("Features : fp asimd i8mm", "OK", "dotprod or i8mm"),
        ("Features : fp asimd crc32", "WARN", "INT8 files from elsewhere can where weights are -128"),
        ("Features : half thumb neon vfpv4", "WARN", "pairs of products are added in 16 bits"),
        ("flags : sse4_2", "WARN", "may be slower than FP32"),
    ],
)
def test_what_the_instructions_mean_for_int8(root, line, state, words):
    folder = root({"proc/cpuinfo": f"model name : Some CPU\n{line}\n"})
    row = machine.check_int8(folder)
    assert row.state == state
    assert words in row.found
    assert machine.check_processor(folder).found.startswith("Some CPU; ")


def cores_with(driver, governors):
    """Files of cores 0, 1 and so on."""
    files = {}
    for core, governor in enumerate(governors):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files |= {f"{folder}/scaling_governor": f"{governor}\n", f"{folder}/scaling_driver": f"{driver}\n"}
    return files


@pytest.mark.parametrize(
    ("driver", "governors", "found", "fix"),
    [
        ("intel_pstate", ["performance"] * 2, "performance", None),
        ("cpufreq-dt", ["schedutil"] * 2, "schedutil", None),
        ("intel_pstate", ["powersave"] * 2, "powersave: clocks wander", "cpupower frequency-set"),
        (
            "acpi-cpufreq",
            ["powersave"] * 2,
            "powersave: powersave pins the lowest clock",
            "cpupower frequency-set",
        ),
        (
            "cpufreq-dt",
            ["powersave"] * 2,
            "powersave: powersave pins the lowest clock",
            "sudo tee /sys/devices",
        ),
        (
            "scmi",
            ["performance", "performance", "powersave"],
            "performance (cores 0-1), powersave (cores 2): powersave pins",
            "sudo tee /sys/devices",
        ),
    ],
)
def test_what_a_governor_does_and_the_command_for_this_system(root, driver, governors, found, fix):
    row = machine.check_governor(root(cores_with(driver, governors)))
    assert row.found.startswith(found)
    assert (row.state, row.fix or "") == ("WARN" if fix else "OK", row.fix or "")
    assert (fix or "") in (row.fix or "")


def test_a_jetson_has_a_command_of_its_own_for_clocks(root):
    files = cores_with("tegra194-cpufreq", ["powersave"])
    row = machine.check_governor(root({**files, "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"}))
    assert row.fix == "Before measuring: sudo jetson_clocks"


def test_the_board_is_named_beside_its_processor(root):
    part = "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU part : 0xd08\n"
    folder = root({"proc/cpuinfo": part, "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    assert machine.check_processor(folder).found == "Cortex-A72 of Raspberry Pi 4 Model B Rev 1.4; NEON"


def test_an_emulated_processor_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    for kernel, state in (("aarch64", "OK"), ("x86_64", "WARN")):
        (tmp_path / "proc/sys/kernel/arch").write_text(kernel)
        row = machine.check_processor(tmp_path)
        assert row.state == state
        assert ("emulated on x86_64: times are the emulator's" in row.found) == (state == "WARN")


def test_memory_is_the_least_of_machine_and_container(root):
    folder = root({"proc/meminfo": "MemTotal: 9999999 kB\nMemAvailable: 8388608 kB\n"})
    assert machine.check_memory(folder).found == "8.0 GiB free"
    limit = {"sys/fs/cgroup/memory.max": str(3 * 2**30), "sys/fs/cgroup/memory.current": str(2 * 2**30)}
    row = machine.check_memory(root(limit))
    assert (row.state, row.found) == ("WARN", "1.0 GiB free")
    row = machine.check_memory(root({"sys/fs/cgroup/memory.current": str(3 * 2**30 - 1)}))
    assert row.state == "FAIL"


def test_a_quota_below_the_cores_warns(monkeypatch):
    monkeypatch.setattr(machine, "read_cpu_quota", lambda: 0.5)
    row = machine.check_cores()
    assert (row.state, "a quota of 0.5" in row.found, "--threads 1" in row.fix) == ("WARN", True, True)


# -- storage


def test_a_user_without_home_is_told_where_engines_have_no_place(monkeypatch):
    for name in ("HOME", "EDGEKILN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)  # nobody's, so the password file names no home either
    row = storage.check_cache_folder()
    assert (row.state, "no home directory" in row.found, "EDGEKILN_CACHE" in row.fix) == ("FAIL", True, True)
    assert storage.check_cache_room() == []
    assert "~" not in _private_names().values()


@pytest.mark.parametrize(("free", "state"), [(64 * 2**20, "WARN"), (2**30, "OK"), (None, "WARN")])
def test_shared_memory_of_a_container_is_told_with_its_option(monkeypatch, tmp_path, free, state):
    if free is not None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    row = storage.check_shared_memory(tmp_path / "absent")
    assert row.state == state
    assert (row.fix is not None and "--shm-size" in row.fix) == (state == "WARN")


def test_the_cache_is_locked_and_nothing_is_left_there(tmp_path):
    folder = tmp_path / "cache"
    assert storage.check_cache_folder(folder).found.endswith("(not there yet), writable, and locks hold")
    assert not folder.exists()
    folder.mkdir(mode=0o700)
    assert storage.check_cache_folder(folder).state == "OK"
    assert list(folder.iterdir()) == []


def test_a_cache_that_others_may_write_or_that_is_a_file_fails(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    row = storage.check_cache_folder(folder)
    assert (row.state, row.fix) == ("FAIL", f"Run: chmod 700 {folder}")
    (tmp_path / "file").touch()
    row = storage.check_cache_folder(tmp_path / "file" / "engines")
    assert row.state == "FAIL"
    assert "is a file" in row.found


def test_a_file_system_without_locks_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *arguments: None)
    assert "the file system has no locks" in storage.check_cache_folder(tmp_path).found


def test_a_read_only_cache_fails(tmp_path, monkeypatch):
    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    row = storage.check_cache_folder(tmp_path)
    assert (row.state, "Read-only file system" in row.found) == ("FAIL", True)


@pytest.mark.parametrize(("free", "state"), [(2**28, "FAIL"), (2**31, "WARN"), (2**40, "OK")])
def test_room_on_disk(tmp_path, monkeypatch, free, state):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**41, 0, free))
    assert storage.check_room("disk", tmp_path / "runs" / "x", "Free some.").state == state


def test_another_encoding_warns(monkeypatch):
    assert storage.check_encoding().name == "encoding"
    monkeypatch.setattr("locale.getpreferredencoding", lambda do_setlocale: "ANSI_X3.4-1968")
    row = storage.check_encoding()
    assert (row.state, "text ANSI_X3.4-1968" in row.found) == ("WARN", True)


# -- bundles


def test_engines_without_their_gpu_are_told_why(tensorrt_run):
    head, *rows = bundles.check_bundle(tensorrt_run[2].bundle)
    by_name = {row.name: row for row in rows}
    assert (head.state, "passed and load here: fp32" in head.found) == ("OK", True)
    assert "loads and runs here" in by_name["variant fp32"].found
    if gpu.probe_gpus().problem:
        assert by_name["variant rtx-fp16"].state == "WARN"
        assert "does not load here" in by_name["variant rtx-fp16"].found
    assert "never built" in by_name["variant trt-int8"].found


def test_a_changed_bundle_fails(tiny_run, tmp_path):
    bundle = shutil.copytree(tiny_run[2].bundle, tmp_path / "bundle")
    (bundle / "int8.onnx").write_bytes(b"x")
    [row] = bundles.check_bundle(bundle)
    assert (row.state, "int8.onnx was changed" in row.found) == ("FAIL", True)


# -- the document


def test_every_row_is_explained_in_the_document(edgekiln, tiny_run):
    text = (ROOT / "docs" / "doctor.md").read_text("utf-8")
    told = set(re.findall(r"^\| ([\w ]+) \| ", text, re.MULTILINE)) - {"check"}
    rows = json.loads(edgekiln("doctor", tiny_run[2].bundle, "--json")[1])["rows"]
    names = {
        re.sub(r"^(extra|provider|variant) .*", r"\1 NAME", re.sub(r"^gpu \d+", "gpu N", row["name"]))
        for row in rows
    }
    assert {re.sub(r"^tensorrt-\w+", "tensorrt", name) for name in names} <= told
    assert {"jetpack", "power mode", "system tensorrt", "pycuda"} <= told


def test_the_documents_commands_exist():
    text = (ROOT / "docs" / "doctor.md").read_text("utf-8")
    commands = re.findall(r"^edgekiln doctor(.*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for rest in commands:
        doctor.make_context("doctor", rest.split())
