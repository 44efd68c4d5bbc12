"""What a verdict and a time hold for, read from a machine that is laid out in a folder, and compared."""

import os
import platform
from dataclasses import replace
from importlib.metadata import version

import onnxruntime
import pytest
from fake_cuda import FAKE_DEVICE

from edgekiln.runtime import cuda
from edgekiln.runtime.bundles.judged_with import describe_kind, tell_other_kind
from edgekiln.runtime.bundles.machine_kind import (
    TIME_FIELDS,
    VERDICT_FEATURES,
    VERDICT_FIELDS,
    MachineKind,
    read_kind,
)
from edgekiln.runtime.cuda import DriverState

ORT = ".".join(onnxruntime.__version__.split(".")[:2])
KIND = MachineKind(
    architecture="x86_64",
    library="onnxruntime",
    version="1.32",
    features=("avx2", "avx512_vnni"),
    processor="Some CPU",
    board="m7i.large",
    cores=2.0,
    power_mode="performance",
)
OTHERS = {
    "architecture": "aarch64",
    "library": "openvino",
    "version": "1.31",
    "features": ("avx2",),
    "sm": "8.7",
    "processor": "Another CPU",
    "board": "m7i.metal",
    "cores": 1.5,
    "gpu": "Orin",
    "driver": "580.95.05",
    "power_mode": "powersave",
}


@pytest.fixture
def pi(tmp_path):
    """A Raspberry Pi's files."""
    features = "fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    core = f"Features\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
    files = {
        "proc/cpuinfo": f"processor\t: 0\n{core}\nModel\t: Raspberry Pi 5 Model B Rev 1.0\n",
        "sys/module/nvidia/version": "580.95.05",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=15W >\n< PM_CONFIG DEFAULT=2 >\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_kind_for_a_cpu_has_its_features_and_no_driver(pi):
    assert read_kind("onnxruntime-cpu", root=pi) == MachineKind(
        architecture=platform.machine(),
        library="onnxruntime",
        version=ORT,
        features=("asimd", "asimddp", "asimdhp", "fphp"),
        processor="Cortex-A76",
        board="Raspberry Pi 5 Model B Rev 1.0",
        cores=float(len(os.sched_getaffinity(0))),
        power_mode="2 15W",
    )


def test_kind_for_a_gpu_has_its_compute_capability_and_driver_and_no_cpu_feature(pi, monkeypatch):
    second = replace(FAKE_DEVICE, name="Second GPU", compute_capability=(9, 0))
    monkeypatch.setattr(cuda, "probe_driver", lambda: DriverState(None, (12, 6), (FAKE_DEVICE, second)))
    kind = read_kind("onnxruntime-cuda", root=pi)
    assert (kind.sm, kind.gpu, kind.driver, kind.features) == ("8.7", "Fake GPU", "580.95.05", ())
    assert read_kind("onnxruntime-cuda", 1, root=pi).gpu == "Second GPU"
    assert read_kind("onnxruntime-cuda", 2, root=pi).sm == ""


def test_a_cpu_asks_no_driver(monkeypatch):
    monkeypatch.setattr(cuda, "probe_driver", lambda: pytest.fail("a driver was asked"))
    assert read_kind("openvino").version == ".".join(version("openvino").split(".")[:2])


def test_kind_of_this_machine_starts_no_program_and_names_no_place(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    kind = read_kind("onnxruntime-cpu")
    assert set(kind.features) <= VERDICT_FEATURES
    assert platform.node() not in str(kind.to_dict()).split("'")


@pytest.mark.parametrize("name", TIME_FIELDS)
def test_each_field_of_a_time_makes_another_kind_and_those_of_a_verdict_another_verdict(name):
    other = replace(KIND, **{name: OTHERS[name]})
    assert other != KIND
    assert (other.verdict != KIND.verdict) == (name in VERDICT_FIELDS)
    assert bool(tell_other_kind(KIND.verdict, other)) == (name in VERDICT_FIELDS)


def test_json_holds_what_is_told_alone_and_comes_back():
    assert KIND.verdict.to_dict() == {
        "architecture": "x86_64",
        "library": "onnxruntime",
        "version": "1.32",
        "features": ["avx2", "avx512_vnni"],
    }
    assert MachineKind.from_dict(KIND.to_dict()) == KIND
    assert MachineKind.from_dict({**KIND.to_dict(), "of_a_later_version": [1]}) == KIND


@pytest.mark.parametrize(
    "values",
    [[], "x86_64", {}, {"architecture": 5}, {"architecture": "x", "features": 5},
     {"architecture": "x", "features": [1]}, {"architecture": "x", "cores": "2"}, {"architecture": "x", "gpu": None}],
)  # fmt: skip
def test_what_is_no_kind_is_refused(values):
    with pytest.raises((TypeError, KeyError)):
        MachineKind.from_dict(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"features": ("avx2",)}, "its CPU has avx512_vnni, this one does not"),
        ({"features": ("amx_int8", *KIND.features)}, "this CPU has amx_int8, that one does not"),
        ({"architecture": "aarch64", "features": ("asimd",)}, "(x86_64 there, aarch64 here)"),
        ({"version": "1.33"}, "(onnxruntime 1.32 there, onnxruntime 1.33 here)"),
        ({"features": (), "sm": "9.0"}, "compute capability unknown there, 9.0 here"),
    ],
)
def test_what_is_other_is_said_in_a_sentence_that_names_the_remedy(changes, words):
    told = tell_other_kind(KIND.verdict, replace(KIND, **changes))
    assert words in told
    assert told.startswith("judged on another kind of machine (")
    assert told.endswith("`edgekiln bench BUNDLE` judges it here")


def test_kind_in_short():
    assert describe_kind(KIND.verdict) == "x86_64, avx2, avx512_vnni; onnxruntime 1.32"
    assert describe_kind(None) == "kind unknown"
