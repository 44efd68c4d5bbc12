"""Ctrl-C that a library swallows or turns into an error of its own is still Ctrl-C."""

import os
import signal

import pytest

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.workspace.interrupts import check_interrupt, notice_interrupts, was_interrupted
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.errors import UntrustedError


@pytest.fixture(autouse=True)
def heed_interrupts():
    """A test run that a shell put into the background began with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    with notice_interrupts():  # forget what the test remembered
        pass


def interrupt_like_a_library():
    """What safetensors does where KeyboardInterrupt is raised in what it calls."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
        raise UntrustedError("the file is no intact safetensors file") from error


def test_a_converted_interrupt_is_remembered_until_the_next_command():
    with notice_interrupts(), pytest.raises(UntrustedError):
        interrupt_like_a_library()
    assert was_interrupted()
    with pytest.raises(KeyboardInterrupt):
        check_interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with notice_interrupts():
        assert not was_interrupted()
        check_interrupt()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_somebody_elses_handler_stays(handler):
    signal.signal(signal.SIGINT, handler)
    with notice_interrupts():
        assert signal.getsignal(signal.SIGINT) is handler
        os.kill(os.getpid(), signal.SIGINT)
    assert not was_interrupted()


def test_the_command_line_exits_with_130_whatever_the_library_said(edgekiln, tiny_run, tmp_path, monkeypatch):
    from edgekiln.pipeline.training import checkpoint

    monkeypatch.setattr(checkpoint, "load_tensors", lambda path: interrupt_like_a_library())
    code, _, err = edgekiln("run", tiny_run[0], "--runs", tmp_path / "runs")
    assert code == 130, err
    assert "edgekiln: Interrupted. Run the same command again to go on." in err
    assert "safetensors" not in err


def test_an_engine_that_an_interrupt_spoiled_is_not_kept_as_failed(tiny_recipe, tmp_path, monkeypatch):
    from edgekiln.export.precision import int8_cpu

    def quantize(*arguments, **options):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("the quantizer failed") from error

    monkeypatch.setattr(int8_cpu, "run_quantizer", quantize)
    with notice_interrupts(), pytest.raises(KeyboardInterrupt):
        run_recipe(load_recipe(tiny_recipe), tmp_path / "runs", SilentProgress(), until="variant")
    assert not list((tmp_path / "runs").glob("tiny/stages/variant.int8/[!.]*"))
