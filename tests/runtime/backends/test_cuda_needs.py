"""Which CUDA installed libraries were made for, by their metadata."""

import pytest

from edgekiln.runtime.backends.cuda_needs import LIBRARIES, needed_cuda


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Puts a distribution on the path, ahead of all that are installed."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def place_(name, *requirements, version="1.0"):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (info / "METADATA").write_text(
            "\n".join([*lines, *(f"Requires-Dist: {r}" for r in requirements)]) + "\n"
        )

    return place_


def test_tensorrt_names_its_cuda_in_its_parts(place):
    place("tensorrt-fake", "tensorrt_fake_cu12==1.0")
    place("tensorrt_fake_cu12")
    assert needed_cuda("tensorrt-fake") == (12, 0)
    assert needed_cuda("tensorrt_fake") == (12, 0)  # the name of its module


def test_a_library_that_does_not_tell_or_is_not_here_needs_nothing(place):
    place("tensorrt-dispatch", version="10.3.0")  # as JetPack's: it comes with its driver
    assert needed_cuda("tensorrt-dispatch") is None
    assert needed_cuda("tensorrt-nowhere") is None


@pytest.mark.parametrize(
    ("requirement", "needed"),
    [
        ("nvidia-cuda-runtime~=13.0; extra == 'cuda'", (13, 0)),
        ("nvidia-cuda-runtime-cu12~=12.0; extra == 'cuda'", (12, 0)),
        ("numpy>=1.21", None),
    ],
)
def test_onnxruntime_names_it_in_what_it_requires(place, requirement, needed):
    place("onnxruntime-gpu", "flatbuffers", requirement)
    assert needed_cuda("onnxruntime-gpu") == needed


def test_all_that_start_cuda_are_listed():
    assert {"tensorrt", "tensorrt-lean", "tensorrt-rtx", "onnxruntime-gpu"} <= set(LIBRARIES)
