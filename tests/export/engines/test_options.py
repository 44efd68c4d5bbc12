import pytest

from edgekiln.export.engines.options import BatchProfile, BuildOptions
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.spec import Precision


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 4), (1, 8, 4), (-1, -1, -1)])
def test_batch_profile_is_in_order(sizes):
    with pytest.raises(UsageError, match="1 <= min <= opt <= max <= 1024, got"):
        BatchProfile(*sizes)


@pytest.mark.parametrize(
    ("flavour", "options", "words"),
    [
        ("tensorrt", {"capabilities": (86,)}, "capabilities are for tensorrt-rtx"),
        ("tensorrt-rtx", {"version_compatible": True}, "tensorrt-rtx has no version_compatible"),
        (
            "tensorrt-rtx",
            {"hardware_compatibility": "ampere-plus"},
            "tensorrt-rtx has no hardware_compatibility",
        ),
        ("tensorrt-rtx", {"typing": "weak"}, "tensorrt-rtx has no typing: leave it out"),
        ("tensorrt-rtx", {"sparsity": True, "tiling": "full"}, "has no sparsity and no tiling"),
        ("tensorrt-rtx", {"avg_timing_iterations": 4}, "has no avg_timing_iterations"),
        (
            "tensorrt-rtx",
            {"precision": Precision.BF16, "capabilities": (75, 86)},
            r"Turing \(75\) has no BF16",
        ),
        ("tensorrt", {"max_aux_streams": -1}, "max_aux_streams is 0 or more, got -1"),
        ("tensorrt", {"avg_timing_iterations": 0}, "avg_timing_iterations is 1 or more, got 0"),
        ("tensorrt", {"workspace_bytes": 0}, "workspace_bytes must be positive, got 0"),
        (
            "tensorrt",
            {"batch": (BatchProfile(), BatchProfile())},
            "Two batch profiles of an engine are the same",
        ),
        ("tensorrt", {"batch": ()}, "one batch profile or several different ones, got 0"),
        ("tensorrt", {"optimization_level": 6}, "optimization_level is 0 to 5, got 6"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(flavour, options, words):
    with pytest.raises(UsageError, match=words):
        BuildOptions(flavour, **{"precision": Precision.FP16, **options})


def test_options_of_one_profile_are_written_as_they_always_were():
    """Engines that are in a cache stay in use: a key that is not used is not in what determines an engine."""
    assert BuildOptions("tensorrt", Precision.FP16, BatchProfile(1, 4, 8)).to_dict() == {
        "flavour": "tensorrt", "precision": "fp16", "batch": {"min": 1, "opt": 4, "max": 8}, "workspace_bytes": None,
        "optimization_level": None, "tf32": False, "version_compatible": False, "hardware_compatibility": "none",
        "capabilities": (), "typing": "strong",
    }  # fmt: skip


def test_every_knob_that_is_used_is_part_of_what_determines_an_engine():
    plain = BuildOptions("tensorrt", Precision.FP16).to_dict()
    knobs = {"max_aux_streams": 0, "avg_timing_iterations": 4, "sparsity": True, "tiling": "fast"}
    for name, value in knobs.items():
        assert BuildOptions("tensorrt", Precision.FP16, **{name: value}).to_dict() == {**plain, name: value}
