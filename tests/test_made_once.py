"""One makes, all others read; who fails leaves nothing that could be taken for whole."""

import subprocess
import sys

import pytest
from made_once import MadeOnce
from tests_support import ROOT

MAKER = """
import sys, time
from pathlib import Path
from made_once import MadeOnce
place = Path(sys.argv[1])

def make(folder):
    with (place / "makers").open("a") as file:
        file.write("x")
    time.sleep(0.2)
    (folder / "file").write_text("whole")
    return folder / "file"

print(MadeOnce(place)("thing", make).read_text())
"""


def test_of_several_processes_one_makes_and_all_read(tmp_path):
    command = [sys.executable, "-c", MAKER, str(tmp_path)]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT / "tests") for _ in range(3)
    ]
    assert [child.communicate(timeout=60)[0] for child in children] == ["whole\n"] * 3
    assert (tmp_path / "makers").read_text() == "x"


def test_who_fails_leaves_it_to_the_next(tmp_path):
    once = MadeOnce(tmp_path)

    def fail(folder):
        (folder / "half").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        once("thing", fail)
    assert once("thing", lambda folder: list(folder.iterdir())) == []
    assert once("thing", fail) == []
