import pytest

from edgekiln.benchmarks.timing.loadgen.answer import read_answer, write_answer, write_error
from edgekiln.runtime.errors import DeviceError, EngineError


def test_answer_comes_back_as_it_was_told(tmp_path):
    write_answer(tmp_path, {"batch": 1})
    assert read_answer(tmp_path) == {"batch": 1}


def test_error_comes_back_as_its_own_kind_with_its_hint(tmp_path):
    write_error(tmp_path, DeviceError("no such device", hint="Take another."))
    with pytest.raises(DeviceError, match="no such device") as caught:
        read_answer(tmp_path)
    assert caught.value.hint == "Take another."
    write_error(tmp_path, ValueError("of a library"))
    with pytest.raises(EngineError, match="ValueError: of a library"):
        read_answer(tmp_path)


def test_process_without_an_answer_is_told_with_its_last_words(tmp_path):
    (tmp_path / "output.txt").write_text("terminate called\nafter throwing\n")
    with pytest.raises(EngineError, match="ended without an answer: terminate called after throwing"):
        read_answer(tmp_path)
