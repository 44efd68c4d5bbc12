"""``inspect --layers`` and ``diff``, typed: tables, documents, and what a newcomer gets wrong."""

import contextlib
import json
import shutil

import pytest
from tests_support import ROOT

from edgekiln.pipeline.cli import main

BUNDLE = ROOT / "tests" / "data" / "former_bundle" / "bundle"
INSPECTOR = ROOT / "tests" / "data" / "inspector"


def type_in(capsys, *arguments):
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return int(left.value.code or 0), out, err


def document(capsys, *arguments):
    code, out, _ = type_in(capsys, *arguments, "--json")
    assert code == 0
    return json.loads(out)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The layers of both variants, with times, as a device would write them down."""
    path = tmp_path_factory.mktemp("layers") / "here.json"
    with contextlib.redirect_stdout(path.open("w")) as file, file, pytest.raises(SystemExit):
        main(["inspect", str(BUNDLE), "--layers", "--time", "--threads", "1", "--json"])
    return path


def test_shares_add_up_and_precisions_are_the_variants(written):
    profiles = json.loads(written.read_text())["profiles"]
    assert [p["engine"] for p in profiles] == ["fp32", "int8"]
    for profile in profiles:
        layers = profile["layers"]
        assert sum(row["share_of_macs"] for row in layers) == pytest.approx(1)
        assert sum(row["share_of_time"] for row in layers) == pytest.approx(1)
        assert sum(row["ms"] for row in layers) == pytest.approx(profile["timing"]["sum_ms"])
        assert {row["precision"] for row in layers if row["macs"]} == {profile["engine"]}
        assert profile["threads"] == 1


def test_the_table_has_the_slowest_first_and_what_the_profiler_adds(written, capsys):
    code, out, _ = type_in(capsys, "inspect", written, "--layers")
    table = out.split("\n\n")[1].splitlines()
    times = [float(line.split()[0]) for line in table[2:-1]]
    assert code == 0
    assert times == sorted(times, reverse=True)
    assert table[-1].startswith("the call takes ")
    assert "with the profiler" in table[-1]


def test_two_precisions_are_aligned_by_node(written, capsys):
    difference = document(capsys, "diff", written, written)["differences"]
    assert [d["before"]["engine"] for d in difference] == ["fp32", "int8"]
    assert not any(piece["changed"] for d in difference for piece in d["pieces"])
    both = json.loads(written.read_text())
    split = []
    for profile in both["profiles"]:
        split.append(written.with_name(f"{profile['engine']}.json"))
        split[-1].write_text(json.dumps({"profiles": [profile]}))
    [found] = document(capsys, "diff", *split)["differences"]
    pieces = {piece["nodes"][0]: piece for piece in found["pieces"]}
    for name in ("node_conv2d", "node_conv2d_1", "node_conv2d_2", "node_linear"):
        assert pieces[name]["before"]["precisions"] == ["fp32"]
        assert pieces[name]["after"]["precisions"] == ["int8"]
        assert pieces[name]["changed"]
        assert pieces[name]["gained_ms"] == pytest.approx(
            pieces[name]["before"]["ms"] - pieces[name]["after"]["ms"]
        )
    gains = [abs(piece["gained_ms"]) for piece in found["pieces"]]
    assert gains == sorted(gains, reverse=True)
    code, out, _ = type_in(capsys, "diff", *split)
    assert code == 0
    assert "fp32 > int8" in out
    assert "kernels: Conv -> QLinearConv" in out


def test_two_libraries_of_one_file(capsys):
    pytest.importorskip("importlib.metadata").version("openvino")
    model = BUNDLE / "int8.onnx"
    [found] = document(capsys, "diff", model, model, "--backend", "onnxruntime-cpu", "--backend", "openvino")[
        "differences"
    ]
    nodes = {name for piece in found["pieces"] for name in piece["nodes"]}
    assert {"node_conv2d", "node_conv2d_1", "node_conv2d_2", "node_linear"} <= nodes
    assert [found[side]["backend"] for side in ("before", "after")] == ["onnxruntime-cpu", "openvino"]


def test_inspector_files_of_two_versions(capsys):
    [found] = document(capsys, "diff", INSPECTOR / "v10_fp16.json", INSPECTOR / "v11_fp16.json")[
        "differences"
    ]
    assert len(found["pieces"]) == 4
    changed = [piece for piece in found["pieces"] if piece["changed"]]
    assert [piece["nodes"] for piece in changed] == [["/fc/Gemm"]]
    code, out, _ = type_in(capsys, "diff", INSPECTOR / "v10_fp16.json", INSPECTOR / "v10_int8_island.json")
    assert code == 0
    assert "fp16 > fp32" in out  # the island
    assert "reformats                             1              3" in out


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["inspect", BUNDLE, "--time"], 2, "Only --layers takes --time"),
        (["inspect", BUNDLE, "--layers", "--variant", "int9"], 2, "has no variant int9; it has fp32, int8"),
        (["inspect", BUNDLE, "--layers", "--backend", "openvino"], 2, "--backend cannot be used here"),
        (["inspect", BUNDLE / "fp32.onnx", "--layers", "--variant", "x"], 2, "--variant cannot be used here"),
        (["inspect", BUNDLE / "fp32.onnx", "--layers", "--onnx", "x"], 2, "is an ONNX file itself"),
        (["inspect", "nowhere", "--layers"], 2, "There is no file or folder nowhere"),
        (["inspect", BUNDLE / "report.html", "--layers"], 2, "of no kind whose layers are told"),
        (["inspect", INSPECTOR / "v10_fp16.json", "--layers", "--time"], 2, "--time cannot be used here"),
        (["inspect", BUNDLE / "manifest.json", "--layers"], 4, "wanted the engine inspector's JSON"),
        (["inspect", "plan.engine", "--layers", "--onnx", "nowhere"], 2, "There is no ONNX file nowhere"),
        (["inspect", "plan.engine", "--layers"], 5, ""),
        (["inspect", "rtx.engine", "--layers"], 4, "holds no readable graph"),
        (["inspect", "damaged.onnx", "--layers"], 4, "is no ONNX file that may be opened"),
        (["inspect", "half.json", "--layers"], 4, "is no JSON that can be read"),
        (["inspect", "odd.json", "--layers"], 4, "These are no layers as edgekiln writes them"),
        (["diff", BUNDLE, INSPECTOR / "v10_fp16.json"], 2, "have no engine of one name"),
        (["diff", BUNDLE, BUNDLE, *["--variant", "fp32"] * 3], 2, "more than twice"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_remedy(arguments, exit_code, says, capsys, tmp_path, monkeypatch):
    from fake_tensorrt import make_header

    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.engine").write_bytes(make_header("11.4") + bytes(64))
    (tmp_path / "rtx.engine").write_bytes(make_header("rtx") + bytes(64))
    (tmp_path / "damaged.onnx").write_bytes((BUNDLE / "fp32.onnx").read_bytes()[:-300])
    (tmp_path / "half.json").write_text('{"profiles": [')
    (tmp_path / "odd.json").write_text('{"profiles": [{"engine": "x"}]}')
    code, out, err = type_in(capsys, *arguments)
    assert (code, out) == (exit_code, "")
    assert says in err
    assert "bug in edgekiln" not in err


def test_a_variant_that_cannot_be_asked_here_is_told_beside_the_others(capsys, tmp_path, monkeypatch):
    from edgekiln.export.audits.layers import profiling
    from edgekiln.runtime.errors import DeviceError

    ask = profiling.profile_engine

    def refuse_int8(engine, **how):
        if engine.name == "int8":
            raise DeviceError("There is no GPU.", hint="Take a machine with one.")
        return ask(engine, **how)

    monkeypatch.setattr(profiling, "profile_engine", refuse_int8)
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    first, second = document(capsys, "inspect", tmp_path / "bundle", "--layers")["profiles"]
    assert first["layers"]
    assert second["layers"] == []
    assert "There is no GPU" in second["notes"][0]
