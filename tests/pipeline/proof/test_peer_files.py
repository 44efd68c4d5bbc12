"""Files for LiteRT and ncnn: made by their own tools where these are installed, and every way in which that fails."""

import importlib.util
import os

import numpy as np
import pytest
from contenders_support import context_of, names

from edgekiln.pipeline.data import load_split
from edgekiln.pipeline.proof import contenders, peer_files
from edgekiln.pipeline.proof.peer_files import CONVERTED, PeerFile, make_peer_files, why_not_convertible
from edgekiln.pipeline.stages.settings import _PEER_TOOLS
from edgekiln.pipeline.workspace.stage_files import BASELINE, read_logits
from edgekiln.runtime.errors import BuildError
from edgekiln.runtime.spec import Precision

COUNT = np.arange(8)
LINE = {"path": "none", "scale": [1.0] * 3, "offset": [0.0] * 3}


def test_versions_of_what_makes_a_peer_s_file_are_in_the_key_of_the_benchmark():
    assert {name: tuple(library.packages.values()) for name, library in CONVERTED.items()} == _PEER_TOOLS


def test_what_is_not_installed_is_named_with_the_command(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(peer_files, "_is_installed", lambda module: module == "ncnn")
    chosen = contenders.choose_contenders(context_of(tiny_run, tmp_path, ["litert", "ncnn"]), COUNT)
    assert names(chosen) == [BASELINE, "fp32", "int8"]
    assert chosen.absent == {
        "litert": "ai-edge-litert, ai-edge-quantizer, litert-torch not installed. Run: pip install 'edgekiln[litert]'",
        "ncnn": "pnnx not installed. Run: pip install 'edgekiln[ncnn]'",
    }
    assert why_not_convertible("ncnn", []) == (
        "no variant for a CPU was evaluated that it could be compared with"
    )


def crash(*_):
    os._exit(7)


def refuse(*_):
    raise ValueError("no kernel for Erf\nand more")


@pytest.mark.parametrize(
    ("convert", "told"),
    [
        (crash, "the library ended without an answer"),
        (refuse, "it could not be converted: ValueError: no kernel for Erf"),
    ],
)
def test_a_converter_that_crashes_or_refuses_costs_its_peer_alone(
    tiny_run, tmp_path, monkeypatch, convert, told
):
    context = context_of(tiny_run, tmp_path, ["litert"])
    monkeypatch.setattr(peer_files, "_is_installed", lambda module: True)
    monkeypatch.setattr(peer_files, "_convert", convert if convert is crash else refusing_convert)
    chosen = contenders.choose_contenders(context, COUNT)
    assert names(chosen) == [BASELINE, "fp32", "int8"]
    assert list(chosen.absent) == ["litert:fp32", "litert:int8"]
    assert all(reason.startswith(told) for reason in chosen.absent.values())


def refusing_convert(library, network, folder, calibration, data):
    peer_files._make_litert = refuse
    return peer_files._convert(library, network, folder, calibration, data)


def test_answers_are_judged_and_only_another_network_s_are_refused(tiny_run, tmp_path):
    context = context_of(tiny_run, tmp_path)
    exact = read_logits(context.inputs[f"evaluate.{BASELINE}"])
    labels = load_split(context.inputs["data"], "test").labels
    few = exact.copy()
    few[0] = -few[0]  # one picture of many is answered otherwise
    told = peer_files._judge(context, "litert:int8", few)
    assert told["agreeing"] == len(exact) - 1
    assert told["accuracy"]["images"] == len(labels)
    assert told["drop"]["low"] < told["drop"]["value"] < told["drop"]["high"]
    with pytest.raises(BuildError, match="is another network: it answers"):
        peer_files._judge(context, "litert:int8", np.roll(exact, 1, axis=1))
    with pytest.raises(BuildError, match="finite"):
        peer_files._judge(context, "litert:int8", np.full_like(exact, np.nan))


def test_peer_with_a_file_of_its_own_must_answer_as_when_it_was_made(tiny_run, tmp_path, monkeypatch):
    logits = np.arange(3 * 60, dtype=np.float32).reshape(60, 3)
    about = {"size": 5, "made": {}}
    made = [PeerFile("ncnn:fp32", Precision.FP32, LINE, logits, about)]
    monkeypatch.setattr(contenders, "why_not_convertible", lambda *_: None)
    monkeypatch.setattr(contenders, "make_peer_files", lambda *_: (made, {"ncnn:int8": "no quantizer"}))
    chosen = contenders.choose_contenders(context_of(tiny_run, tmp_path, ["ncnn"]), COUNT)
    peer = chosen.contenders[1]
    assert (peer.name, peer.factory) == ("ncnn:fp32", "edgekiln.benchmarks.timing.peers:open_ncnn")
    assert (peer.optional, peer.tolerance, peer.imports) == (True, 1e-3, ("ncnn",))
    assert np.array_equal(peer.logits, logits[COUNT])
    assert (dict(chosen.peers), dict(chosen.about)) == ({"ncnn:fp32": "fp32"}, {"ncnn:fp32": about})
    assert chosen.absent == {"ncnn:int8": "no quantizer"}


# -- the real libraries


def require(library):
    missing = [name for name in CONVERTED[library].packages if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install 'edgekiln[{library}]'")


@pytest.mark.slow
@pytest.mark.parametrize(("library", "precisions"), [("litert", ["fp32", "int8"]), ("ncnn", ["fp32"])])
def test_real_files_answer_as_pytorch_does(tiny_run, tmp_path, library, precisions):
    require(library)
    context = context_of(tiny_run, tmp_path, [library])
    made, absent = make_peer_files(context, library, context.recipe.variants)
    assert [file.name for file in made] == [f"{library}:{precision}" for precision in precisions]
    assert list(absent) == (["ncnn:int8"] if library == "ncnn" else [])
    exact = read_logits(context.inputs[f"evaluate.{BASELINE}"])
    for file in made:
        # FP32 sums in another order; INT8 of a network of few layers, each rounded to 1/255 of its range.
        tolerance = 1e-3 if file.precision is Precision.FP32 else 0.05
        assert np.abs(file.logits - exact).max() <= tolerance * np.ptp(exact)
        assert file.about["size"] > 1000
        assert set(CONVERTED[library].packages.values()) <= set(file.about["made"]["versions"])
        assert (file.about["made"]["calibration"] is None) == (file.precision is Precision.FP32)
        open_file = getattr(peer_files, f"open_{library}")
        session = open_file(**file.arguments, threads=2)
        frames = np.array(load_split(context.inputs["data"], "test").frames[:3])
        assert np.allclose(session.run(frames), file.logits[:3], atol=1e-4)  # a batch, other threads
        session.close()
