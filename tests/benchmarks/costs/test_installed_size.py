"""Sizes of installations from packages' own lists of files."""

from importlib.metadata import distribution
from pathlib import Path

import pytest

from edgekiln.benchmarks.costs.installed_size import (
    BUILD_EXTRAS,
    RUNTIME_EXTRAS,
    closure,
    compare_installations,
    installed_mb,
)


def test_the_runtime_needs_few_packages_and_the_build_contains_them():
    runtime, missing = closure(RUNTIME_EXTRAS)
    assert not missing
    assert {"edgekiln", "numpy", "pillow", "click", "rich", "onnxruntime", "protobuf"} <= set(runtime)
    assert not {"torch", "onnx", "sympy", "matplotlib"} & set(runtime)
    build, _ = closure(BUILD_EXTRAS)
    assert {"torch", "timm", "onnx", "nvidia-modelopt"} | set(runtime) <= set(build)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    found, missing = closure(["tensorrt", "pycuda"])
    assert missing == {"tensorrt", "pycuda"} - set(found)


def test_the_size_is_that_of_the_files():
    package = distribution("click")
    wanted = sum(
        Path(package.locate_file(f)).stat().st_size
        for f in package.files
        if f.suffix != ".pyc" and Path(package.locate_file(f)).is_file()
    )
    assert installed_mb({"click": package}) == round(wanted / 1e6, 1)
    assert installed_mb({"click": package, "again": package}) == round(wanted / 1e6, 1)


def test_the_project_itself_counts_also_where_it_is_editable():
    assert installed_mb({"edgekiln": distribution("edgekiln")}) > 0.5


def test_both_are_compared():
    values = compare_installations()
    assert values["runtime_installed_mb"] > 50
    if values["build_installed_mb"] is None:
        pytest.skip(f"not installed here: {values['installed_size_lacks']}")
    share = values["runtime_installed_mb"] / values["build_installed_mb"]
    assert values["runtime_share_of_build"] == round(share, 3)
    assert 0 < share < 1
