"""A child that is called: what it returns and raises comes through; its death, whatever the kind, is a typed error."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tests_support import HEED_INTERRUPTS, die, leave, raise_build_error, say

from edgekiln.export import child as child_module
from edgekiln.export.child import Child
from edgekiln.runtime.errors import BuildError, DataError, ResourceError


@pytest.fixture
def child():
    with Child("the engine") as made:
        yield made


def test_one_process_serves_all_calls(child):
    first = child.call(os.getpid)
    assert first != os.getpid()
    assert child.call(os.getpid) == first
    assert child.call(divmod, 7, 2) == (3, 1)
    child.close()
    assert not child.is_running


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGFPE"])
def test_a_crash_is_a_build_error_and_the_next_call_has_a_new_process(child, name):
    first, number = child.call(os.getpid), getattr(signal, name)
    with pytest.raises(
        BuildError, match=rf"the library crashed \(signal {number}\).* was ended by {name}"
    ) as caught:
        child.call(die, int(number))
    assert caught.value.hint
    assert not child.is_running
    assert child.call(os.getpid) != first


def test_a_kill_is_a_matter_of_memory(child):
    with pytest.raises(ResourceError, match=r"the library was killed \(signal 9\).*memory runs out"):
        child.call(die, int(signal.SIGKILL))


@pytest.mark.parametrize("code", [0, 3])
def test_an_end_without_an_answer_names_the_exit_code_and_the_last_words(child, code, capfd):
    with pytest.raises(BuildError, match=rf"without an answer.* ended with exit code {code}: no such kernel"):
        child.call(leave, code, "no such kernel")
    assert "no such kernel" in capfd.readouterr().err


def test_a_call_without_an_answer_in_time_hangs(child, monkeypatch):
    child.call(os.getpid)
    monkeypatch.setattr(child_module, "_ANSWER_SECONDS", 0.2)
    with pytest.raises(ResourceError, match=r"hangs: the engine gave no answer within 0\.2 s"):
        child.call(time.sleep, 60)
    assert not child.is_running


def test_typed_errors_keep_kind_hint_and_more_and_say_where(child):
    with pytest.raises(BuildError, match="it would not") as caught:
        child.call(raise_build_error)
    assert (caught.value.hint, caught.value.node, caught.value.log) == ("Try less.", "n", (("ERROR", "x"),))
    assert "in raise_build_error" in str(caught.value.__cause__)
    with pytest.raises(DataError):
        child.call(exec, "from edgekiln.runtime.errors import DataError\nraise DataError('d')")
    assert child.is_running


def test_what_it_prints_goes_to_stderr_and_its_answer_is_read_all_the_same(child, capfd):
    child.call(say, "a library's chatter")
    child.close()
    out, err = capfd.readouterr()
    assert (out, err.strip()) == ("", "a library's chatter")


def test_ctrl_c_ends_the_child_at_once(tmp_path):
    code = HEED_INTERRUPTS + (
        "import os, time\nfrom edgekiln.export.child import Child\n"
        "child = Child('the engine')\nprint(child.call(os.getpid), flush=True)\nchild.call(time.sleep, 60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    pid = int(process.stdout.readline())
    time.sleep(0.3)  # until it waits for the second call
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: both get it
    _, complaints = process.communicate(timeout=30)
    assert complaints.rstrip().endswith(b"KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
