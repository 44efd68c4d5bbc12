"""A missing extra is told with its install line; a broken package is not mistaken for a missing one."""

import importlib
import json
import sys

import pytest

from edgekiln.runtime.errors import ExitCode, MissingExtraError
from edgekiln.runtime.extras import import_extra


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_a_present_module_is_returned():
    assert import_extra("json", "build") is json


@pytest.mark.parametrize("module", ["edgekiln_absent", "edgekiln_absent.part"])
def test_a_missing_package_tells_the_install_line(module):
    with pytest.raises(MissingExtraError, match="'edgekiln_absent' is needed here") as caught:
        import_extra(module, "gpu")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 5
    assert caught.value.hint == "Run: pip install 'edgekiln[gpu]'"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_missing_part_of_a_present_package_tells_the_install_line(site):
    (site / "shared_namespace_x").mkdir()
    with pytest.raises(MissingExtraError, match=r"'shared_namespace_x\.part' is needed") as caught:
        import_extra("shared_namespace_x.part", "tensorrt")
    assert "'edgekiln[tensorrt]'" in str(caught.value)


@pytest.mark.parametrize("missing", ["some_dependency_x", "broken_x.own_part"])
def test_a_present_package_that_misses_something_raises_its_own_error(site, missing):
    (site / "broken_x").mkdir()
    (site / "broken_x" / "__init__.py").write_text(f"import {missing}\n")
    with pytest.raises(ModuleNotFoundError, match=missing) as caught:
        import_extra("broken_x", "onnx")
    assert caught.value.name == missing


def test_a_present_package_that_raises_import_error_raises_its_own(site):
    (site / "halfway_x.py").write_text("raise ImportError('libcudart.so.13: cannot open')\n")
    with pytest.raises(ImportError, match=r"libcudart\.so\.13") as caught:
        import_extra("halfway_x", "gpu")
    assert type(caught.value) is ImportError
