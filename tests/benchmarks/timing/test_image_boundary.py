"""The benchmark of 1080p JPEGs: what it measures, on a tiny bundle; how fast is for a quiet machine to say."""

import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from edgekiln.benchmarks.timing.image_boundary import main, make_pictures, measure_image_boundary
from edgekiln.runtime.errors import UsageError


def tiny(classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(classes))


@pytest.fixture(scope="module")
def pictures():
    return make_pictures(count=2)


def test_pictures_are_photographs_of_1080p_and_differ(pictures):
    decoded = [Image.open(io.BytesIO(data)) for data in pictures]
    assert [(image.format, image.size, image.mode) for image in decoded] == [
        ("JPEG", (1920, 1080), "RGB")
    ] * 2
    assert len({*pictures}) == 2
    assert make_pictures(count=2) == pictures
    assert all(np.asarray(image).std() > 20 for image in decoded)


def test_a_folders_own_pictures_are_taken(tmp_path):
    Image.new("RGB", (300, 200), (10, 200, 30)).save(tmp_path / "a.jpg")
    [data] = make_pictures(tmp_path, 1)
    image = Image.open(io.BytesIO(data))
    assert image.size == (1920, 1080)
    np.testing.assert_allclose(np.asarray(image).mean(axis=(0, 1)), (10, 200, 30), atol=2)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UsageError, match="has no JPEG"):
        make_pictures(tmp_path)


def test_all_contenders_are_timed_and_compared(tiny_run, pictures):
    values = measure_image_boundary(tiny_run[2].bundle, pictures, tiny, rounds=1)
    assert set(values["median_ms"]) == {"fast", "plain", "pillow+pytorch"}
    assert all(0 < time < 10_000 for time in values["median_ms"].values())
    assert values["speed_over_pillow_pytorch"]["pillow+pytorch"] == 1
    assert values["reached"] is (values["speed_over_pillow_pytorch"]["fast"] >= 2.5)
    assert values["fast_agrees_with_plain"] in {"0 of 2", "1 of 2", "2 of 2"}
    assert "100 are wanted" in values["fast_decode_recorded"]


def test_the_command_prints_one_document(tiny_run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "networks_of_mine", SimpleNamespace(tiny=tiny))
    arguments = [
        str(tiny_run[2].bundle),
        "--pictures",
        "1",
        "--rounds",
        "1",
        "--network",
        "networks_of_mine:tiny",
    ]
    code = main(arguments)
    assert code == (0 if json.loads(capsys.readouterr().out)["reached"] else 3)


@pytest.mark.parametrize("benchmark", ["costs.batching_cost", "timing.image_boundary"])
def test_a_wrong_bundle_is_told_in_a_line(tmp_path, benchmark):
    command = [sys.executable, "-m", f"edgekiln.benchmarks.{benchmark}", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"There is no folder \S+none\..*\n", done.stderr)
