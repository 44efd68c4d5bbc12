"""edgekiln's CUDA layers and its TensorRT session on a driver without a device: answers, ends, and every failure.

What only a GPU can prove is not here: that an engine loads and runs, and how long anything takes.
"""

import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest
from null_driver import LAYERS, Case, require
from null_driver_mistakes import MISTAKES
from tests_support import ROOT

SUITE = Path(__file__).with_name("test_conformance.py")
FLAVOURS = ["10.3", "11.4", "lean", "rtx"]
CARD, BOARD = {"FAKE_INTEGRATED": "0"}, {"FAKE_INTEGRATED": "1"}
OUT_OF_MEMORY, UNKNOWN, NO_SUCH_STATUS, STICKY = 2, 999, 54321, 719
# PyCUDA hands the text of a status on, and crashes where the driver has none.
UNKNOWN_TO = {"libcuda": NO_SUCH_STATUS, "pycuda": UNKNOWN}

# What may fail without a word, and why.
MAY_FAIL = {
    "cuDriverGetVersion": "the version is told where it is known",
    "cuDeviceGetUuid_v2": "so is the name of a device",
    "cuStreamIsCapturing": "a question of the fake engine's",
}
# The name of TensorRT-RTX's kernel cache is made of what these tell, once more when CUDA is open; it does without.
ASKED_AGAIN = {"cuInit", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetCount", "cuDeviceGetName"} | {
    "cuDeviceTotalMem_v2"
}
# PyCUDA prints a warning where it cannot free, and tries an allocation twice.
PYCUDA_MAY_FAIL = {
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemFreeHost",
    "cuStreamDestroy_v2",
    "cuEventDestroy_v2",
}


@pytest.fixture(params=LAYERS)
def layer(request):
    require(LAYERS[request.param])
    return request.param


def wrong(cases, outcomes):
    """What is wrong, by case."""
    told = {
        str(case): outcome.failure or outcome.answer for case, outcome in zip(cases, outcomes, strict=True)
    }
    return {case: what for case, what in told.items() if what}


@pytest.fixture(scope="module")
def conformance(null_driver, tmp_path_factory):
    """What became of each test of the conformance suite, run once on the driver: ``passed``, or its text."""
    folder = tmp_path_factory.mktemp("conformance")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--basetemp={folder / 'inner'}",
    ]
    # torch brings NVIDIA's own runtime, which works with NVIDIA's driver only.
    command += [f"--junitxml={folder / 'results.xml'}", "-k", "not torch", str(SUITE)]
    environment = null_driver.environment()
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    cases = ElementTree.parse(folder / "results.xml").iter("testcase")
    return {case.attrib["name"]: case[0].attrib["message"] if len(case) else "passed" for case in cases}


def test_every_layer_passes_the_conformance_suite(conformance, layer):
    mine = {name: told for name, told in conformance.items() if re.search(rf"\b{layer}(?!-on-)\b", name)}
    assert len(mine) > 20
    assert set(mine.values()) == {"passed"}, mine


def test_every_flavour_answers_and_leaves_nothing_behind(null_driver, layer, model_file):
    cases = [
        Case(
            "answers",
            {"layer": layer, "flavour": flavour, "wait": wait, "model": model_file},
            {**kind, "FAKE_EAGER": eager},
        )
        for flavour, wait, kind, eager in product(FLAVOURS, ("spin", "blocking"), (CARD, BOARD), "01")
    ]
    assert wrong(cases, null_driver.run(cases)) == {}


def fault_problem(case, outcome):
    """What is wrong with a life in which one call failed; ``None`` where it went as it should."""
    answer, arguments = outcome.answer, case.arguments
    if outcome.failure:
        return outcome.failure
    if answer["problems"]:
        return answer
    if not answer["function"]:
        return "this call was not made"
    if len(answer["told"]) > 1 and arguments["status"] != STICKY:
        return answer
    return answer if is_silent(arguments["layer"], arguments["flavour"], answer) else None


def is_silent(layer, flavour, answer):
    """Whether nothing was told of a failure that should be."""
    may_fail = set(MAY_FAIL)
    if layer == "pycuda":
        may_fail |= PYCUDA_MAY_FAIL
    if flavour == "rtx" and answer["opened"]:
        may_fail |= ASKED_AGAIN
    return not answer["told"] and not answer["warned"] and answer["function"] not in may_fail


@pytest.mark.slow
@pytest.mark.parametrize(("flavour", "kind"), [("10.3", CARD), ("rtx", BOARD)], ids=["card", "board"])
def test_every_call_of_the_driver_may_fail(null_driver, layer, model_file, flavour, kind):
    """Each in turn: one error of edgekiln's, no crash, no hang, nothing left that was not itself refused."""
    common = {"layer": layer, "flavour": flavour, "model": model_file}
    (counted,) = null_driver.run([Case("calls", common, kind)])
    assert counted.failure is None, counted.failure
    cases = [
        Case("fault", {**common, "nth": nth, "status": status}, kind)
        for status in (OUT_OF_MEMORY, UNKNOWN_TO[layer], STICKY)
        for nth in range(1, counted.answer + 1)
    ]
    assert len(cases) > 200
    found = {
        str(case): fault_problem(case, outcome)
        for case, outcome in zip(cases, null_driver.run(cases), strict=True)
    }
    assert {case: problem for case, problem in found.items() if problem} == {}


ON_THE_WAY_OUT = "nothing_that_is_closed_on_failure"


@pytest.fixture(scope="module")
def mistaken(null_driver, model_file):
    """What became of a session with each of the mistakes; of one without, under ``None``."""
    common = {"layer": "libcuda", "flavour": "10.3", "model": model_file}
    mistakes = (None, *MISTAKES)
    cases = [Case("mistaken", {**common, "mistake": mistake}, CARD) for mistake in mistakes]
    return dict(zip(mistakes, null_driver.run(cases), strict=True))


@pytest.mark.parametrize("harmless", [None, ON_THE_WAY_OUT])
def test_nothing_is_noticed_where_there_is_no_mistake(mistaken, harmless):
    """One of them shows only where a call fails, which none does here."""
    assert mistaken[harmless].failure is None
    assert mistaken[harmless].answer == []


@pytest.mark.parametrize("mistake", sorted(set(MISTAKES) - {ON_THE_WAY_OUT}))
def test_a_mistake_is_noticed(mistaken, mistake):
    """A crash is noticed, too; a host that reads what is not its own has to crash."""
    outcome = mistaken[mistake]
    assert outcome.failure or outcome.answer
    assert outcome.failure == ("signal 11" if mistake.startswith("a_host_that_reads") else None)


def test_a_mistake_on_the_way_out_is_noticed(null_driver, model_file):
    common = {"layer": "libcuda", "flavour": "10.3", "model": model_file, "status": UNKNOWN}
    mistakes = (None, ON_THE_WAY_OUT)
    cases = [Case("fault", {**common, "function": "cuGraphUpload", "mistake": m}, CARD) for m in mistakes]
    right, mistaken = (outcome.answer for outcome in null_driver.run(cases))
    assert right["problems"] == []
    assert mistaken["problems"] == ["left: {'executable': 1}"]


@pytest.mark.parametrize(
    ("distribution", "flavour", "version", "magic"),
    [
        ("tensorrt-lean", "tensorrt", [11, 4, 0, 106], "ftrt"),
        ("tensorrt-rtx", "tensorrt-rtx", [1, 7, 1, 116], "vtrt"),
    ],
)
def test_a_real_library_on_a_driver_that_is_too_old_is_told(
    null_driver, distribution, flavour, version, magic
):
    """It ends before the library asks whether the driver is NVIDIA's."""
    require(distribution)
    arguments = {"flavour": flavour, "version": version, "magic": magic}
    (outcome,) = null_driver.run([Case("real_library", arguments, {**CARD, "FAKE_DRIVER": "12080"})])
    assert outcome.failure is None
    assert outcome.answer.startswith(("DeviceError: ", "EnvironmentProblem: "))
    assert "driver" in outcome.answer or "CUDA" in outcome.answer
