import hashlib
import json
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image
from tests_support import be_killed_in_audit, crash_in_audit, refuse_audit, write_pictures

from edgekiln.benchmarks.judging.required import check_gate
from edgekiln.benchmarks.judging.stored_answers import digest_split
from edgekiln.benchmarks.report import render_page
from edgekiln.pipeline.cli.running import RunWish, print_report
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime import load
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.errors import DataError, GateError, ParityError, UsageError


def again(tiny_run, tmp_path, *overrides, **options):
    """Run the finished tiny recipe once more, on a copy of its store."""
    path, runs, _ = tiny_run
    shutil.copytree(runs, tmp_path / "runs", symlinks=True)
    return run_recipe(load_recipe(path, overrides), tmp_path / "runs", SilentProgress(), **options)


def ran(result):
    return {name for name, record in result.stages.items() if not record.cached}


def test_run_leaves_a_bundle_that_predicts(tiny_run):
    path, _, result = tiny_run
    bundle = open_bundle(result.bundle)
    assert [(v.name, v.verdict) for v in bundle.variants] == [("fp32", "pass"), ("int8", "pass")]
    with load(result.bundle) as classifier:
        assert classifier.variant.name == "int8"
        assert classifier.predict(path.parent / "pictures" / "red" / "000.png").label == "red"


def test_second_run_does_nothing(tiny_run, tmp_path):
    assert ran(again(tiny_run, tmp_path)) == set()


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("gate.max_drop=0.3", {"bundle"}),
        ("variants.int8.calibration_images=40", {"variant.int8", "evaluate.int8", "bundle"}),
        ("variants.int8.required=false", {"bundle"}),
        ("finetune.checkpoint_seconds=5.0", {"bundle"}),
    ],
)
def test_a_change_runs_only_what_depends_on_it(tiny_run, tmp_path, override, stages):
    assert ran(again(tiny_run, tmp_path, override)) == stages


def test_touched_pictures_with_the_same_bytes_are_not_trained_on_again(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run[0].parent, tmp_path / "copy")  # every file has a new change time
    result = run_recipe(load_recipe(folder / "tiny.toml"), folder / "runs", SilentProgress())
    assert ran(result) == {"data"}


def test_dangling_link_is_counted_as_unreadable_and_stops_the_run(tiny_recipe, tmp_path):
    (tmp_path / "pictures" / "red" / "link.png").symlink_to("nowhere.png")
    with pytest.raises(
        DataError, match=r"1 of 121 pictures is unreadable.*red/link\.png: The picture is not there"
    ):
        run_recipe(
            load_recipe(tiny_recipe, ["data.max_unreadable=0.0"]),
            tmp_path / "runs",
            SilentProgress(),
            until="data",
        )


def test_until_and_force(tiny_run, tmp_path):
    result = again(tiny_run, tmp_path, until="variant", force=["variant.int8"])
    assert list(result.stages) == ["data", "finetune", "export", "variant.fp32", "variant.int8"]
    assert ran(result) == {"variant.int8"}
    assert result.bundle is None


def test_unknown_stage_lists_the_stages(tiny_run, tmp_path):
    with pytest.raises(UsageError, match=r"There is no stage 'quantise'; there are: data, finetune, export"):
        again(tiny_run, tmp_path, until="quantise")


def test_altered_bundle_is_put_right_again(tiny_run, tmp_path):
    first = again(tiny_run, tmp_path)
    (first.bundle / "fp32.onnx").write_bytes(b"altered")
    (first.bundle / "extra").write_text("x")
    second = run_recipe(load_recipe(tiny_run[0]), tmp_path / "runs", SilentProgress())
    assert ran(second) == set()
    open_bundle(second.bundle)


def test_variant_that_cannot_run_here_is_reported_and_not_passed(tiny_run, tmp_path):
    path, _, _ = tiny_run
    text = path.read_text().replace(
        "[gate]",
        '[[variants]]\nname = "gpu"\nprecision = "fp32"\nbackend = "onnxruntime-cuda"\nrequired = false\n[gate]',
    )
    recipe_path = path.parent / "with-gpu.toml"
    recipe_path.write_text(text)
    shutil.copytree(tiny_run[1], tmp_path / "runs")
    result = run_recipe(load_recipe(recipe_path), tmp_path / "runs", SilentProgress())
    row = result.report["variants"][2]
    if row["verdict"] == "not-run":  # on a machine with a GPU it is judged like the others
        assert "not tried here, because" in row["reason"]
        assert "accuracy" not in row
        assert open_bundle(result.bundle).variant("gpu").verdict == "not-run"
        with pytest.raises(UsageError, match="'gpu' is not deployable"):
            load(result.bundle, variant="gpu")
    check_gate(result.report)


def test_audit_failure_fails_the_variant_and_keeps_the_rest(tiny_run, tmp_path, monkeypatch):
    from edgekiln.export.audits import onnxruntime as audit_onnxruntime

    monkeypatch.setattr(audit_onnxruntime, "audit_int8", refuse_audit)
    result = again(tiny_run, tmp_path, force=["variant.int8"])
    verdicts = {v["name"]: (v["verdict"], v["reason"]) for v in result.report["variants"]}
    assert verdicts["fp32"][0] == "pass"
    assert verdicts["int8"] == ("fail", "Only 10% run in INT8. In floating point: conv1")
    with pytest.raises(GateError, match="1 required variant did not pass: int8: fail"):
        check_gate(result.report)
    with load(result.bundle) as classifier:
        assert classifier.variant.name == "fp32"


def test_crash_of_the_library_is_the_variants_and_not_the_runs(tiny_run, tmp_path, monkeypatch):
    from edgekiln.export.audits import onnxruntime as audit_onnxruntime

    monkeypatch.setattr(audit_onnxruntime, "audit_int8", crash_in_audit)
    result = again(tiny_run, tmp_path, force=["variant.int8"])
    fp32, int8 = result.report["variants"]
    assert fp32["verdict"] == "pass"
    assert int8["verdict"] == "not-run"
    assert int8["reason"].startswith("could not be built here: the library crashed (signal 11)")
    assert int8["simulated"]["images"] == 30  # the graph is sound: the library is not
    assert not open_bundle(result.bundle).variant("int8").deployable
    with pytest.raises(GateError, match="int8: not-run"):
        check_gate(result.report)


def test_kill_of_the_library_is_tried_again(tiny_run, tmp_path, monkeypatch):
    from edgekiln.export.audits import onnxruntime as audit_onnxruntime

    with monkeypatch.context() as patch:
        patch.setattr(audit_onnxruntime, "audit_int8", be_killed_in_audit)
        result = again(tiny_run, tmp_path, force=["variant.int8"], until="evaluate")
    reason = json.loads((result.stages["evaluate.int8"].folder / "not-run.json").read_text())["reason"]
    assert reason.startswith("could not be built here: the library was killed (signal 9)")
    recovered = run_recipe(load_recipe(tiny_run[0]), tmp_path / "runs", SilentProgress())
    assert recovered.report["variants"][1]["verdict"] == "pass"


def test_graph_that_cannot_be_quantized_fails_its_variant_and_keeps_the_rest(tiny_run, tmp_path, monkeypatch):
    from edgekiln.export.precision import int8_cpu

    def fail(*arguments, **options):
        raise KeyError("axes")

    monkeypatch.setattr(int8_cpu, "run_quantizer", fail)
    result = again(tiny_run, tmp_path, force=["variant.int8"])
    row = result.report["variants"][1]
    assert row["verdict"] == "not-run"
    assert (
        "could not be made: onnxruntime's quantizer cannot take this graph: KeyError: 'axes'" in row["reason"]
    )
    assert open_bundle(result.bundle).variant("int8").file is None
    with pytest.raises(GateError, match="int8: not-run"):
        check_gate(result.report)
    with load(result.bundle) as classifier:
        assert classifier.variant.name == "fp32"


def test_export_that_computes_something_else_stops_the_run(tiny_run, tmp_path, monkeypatch):
    from edgekiln.pipeline.variants import exporting

    class Off:
        def run(self, frames):
            return np.zeros((len(frames), 3), np.float32)

    monkeypatch.setattr(exporting, "open_session", lambda *a, **k: Off())
    with pytest.raises(ParityError, match="Worst image: "):
        again(tiny_run, tmp_path, force=["export"], until="export")


@pytest.mark.parametrize(
    ("policy", "verdict", "required", "raises"),
    [
        ("fail", "inconclusive", True, True),
        ("warn", "inconclusive", True, False),
        ("warn", "fail", True, True),
        ("fail", "fail", False, False),
        ("fail", "not-run", True, True),
        ("fail", "pass", True, False),
    ],
)
def test_gate_policy(policy, verdict, required, raises):
    report = {
        "recipe": {"gate": {"inconclusive": policy}},
        "variants": [
            {"name": "v", "verdict": verdict, "reason": "r", "required": required}
            | {"precision": "int8", "backend": "onnxruntime-cpu"}
        ],
    }
    if raises:
        with pytest.raises(GateError, match="v: "):
            check_gate(report)
    else:
        check_gate(report)


def test_gate_on_balanced_accuracy_reaches_row_and_manifest(tiny_run, tmp_path):
    result = again(tiny_run, tmp_path, "gate.metric=balanced", "gate.max_drop=0.3")
    assert ran(result) == {"bundle"}
    manifest = open_bundle(result.bundle).manifest
    assert manifest["gate"]["metric"] == "balanced"
    for row in result.report["variants"]:
        assert row["metric"] == "balanced"
        assert row["reason"].startswith("balanced accuracy drop ")
        assert row["warnings"] == row["notices"] == []


def test_a_network_that_guesses_is_told_first_and_everywhere(tiny_run, tmp_path, monkeypatch, capsys):
    """The interval of 30 right answers of 30 is widened to nothing known: the rest is what a run does."""
    monkeypatch.setattr("edgekiln.benchmarks.judging.floor.wilson_interval", lambda *_: (0.0, 1.0))
    result = again(tiny_run, tmp_path, "gate.max_drop=0.25")
    notice = result.report["notices"][0]
    assert notice.startswith("NO BETTER THAN GUESSING: top-1 of PyTorch ")
    assert ", int8 " in notice
    for name in ("report.html", "MODEL_CARD.md"):
        assert "NO BETTER THAN GUESSING" in (result.bundle / name).read_text()
    assert "Its answers are no better than guessing." in render_page(result.report)
    print_report(result.report, result.bundle, RunWish((), tmp_path, (), False, False, False))
    assert capsys.readouterr().out.startswith("NO BETTER THAN GUESSING")


def test_a_floor_is_judged_in_a_run_and_refuses_with_its_figures(tiny_run, tmp_path):
    result = again(tiny_run, tmp_path, "gate.max_drop=0.25", "gate.min_top1=0.999")
    assert ran(result) == {"bundle"}
    manifest = open_bundle(result.bundle).manifest
    assert manifest["gate"]["min_top1"] == 0.999
    assert [v["verdict"] for v in manifest["variants"]] == ["inconclusive"] * 2
    assert "at least, of PyTorch as of each engine" in (result.bundle / "MODEL_CARD.md").read_text()
    assert "wanted at least 99.90 (gate.min_top1)" in result.report["variants"][1]["reason"]
    with pytest.raises(GateError, match="int8: inconclusive") as caught:
        check_gate(result.report)
    assert "train longer" in caught.value.hint
    reached = again(tiny_run, tmp_path / "more", "gate.max_drop=0.25", "gate.min_top1=0.8")
    check_gate(reached.report)
    assert (
        "wanted at least 80.00 (gate.min_top1): the whole interval is inside"
        in reached.report["variants"][1]["reason"]
    )


def test_collapse_is_a_notice_of_the_report(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "edgekiln.benchmarks.judging.verdict.warn_of_collapse", lambda own, _: f"collapsed: {own}"
    )
    report = again(tiny_run, tmp_path, "gate.max_drop=0.25").report
    assert report["notices"] == ["fp32: collapsed: 30.", "int8: collapsed: 30."]
    assert "int8: collapsed: 30." in render_page(report)


def test_logits_in_the_bundle_are_keyed_by_image_hash(tiny_run):
    result = tiny_run[2]
    index = json.loads((result.stages["data"].folder / "index.json").read_text())
    with np.load(result.bundle / "test_logits.npz", allow_pickle=False) as arrays:
        assert arrays["image_sha256"].tolist() == index["splits"]["test"]["sha256"]
        assert arrays["labels"].tolist() == index["splits"]["test"]["labels"]
        assert arrays["logits.baseline"].shape == arrays["logits.int8"].shape == (30, 3)


def test_report_hashes_model_and_engines_and_names_its_images(tiny_run):
    result = tiny_run[2]
    report, files = result.report, open_bundle(result.bundle).files
    for row in report["variants"]:
        assert row["sha256"] == {name: files[name].sha256 for name in row["files"]}
    checkpoint = result.stages["finetune"].folder / "checkpoint.safetensors"
    assert report["baseline"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    with np.load(result.bundle / "test_logits.npz") as arrays:
        order = np.arange(30)[::-1]
        digest = digest_split(arrays["image_sha256"][order].tolist(), arrays["labels"][order])
        assert report["data"]["test_digest"] == digest
        assert digest != digest_split(arrays["image_sha256"].tolist(), arrays["labels"][order])
    assert {"commit", "cpu_flags", "governor", "load_1min", "versions"} <= set(report["machine"])
    assert report["recipe_commit"] is None  # the recipe lies in no work tree


def test_no_file_of_the_bundle_names_a_folder_of_this_machine(tiny_run):
    path, _, result = tiny_run
    for file in result.bundle.iterdir():
        assert str(path.parent).encode() not in file.read_bytes(), file.name


@pytest.mark.slow
def test_lite0_on_traffic_lights_passes_its_gate(lite0_run):
    rows = {v["name"]: v for v in lite0_run.report["variants"]}
    assert rows["fp32"]["counts"]["agreeing"] == 297
    assert rows["fp32"]["verdict"] == "pass"
    assert rows["int8"]["accuracy"]["top1"] > 0.9
    check_gate({**lite0_run.report, "recipe": {"gate": {"inconclusive": "warn"}}})


def test_other_preparation_of_the_same_pixels_is_another_contract(tiny_recipe, tmp_path):
    """Pictures already at the model's size look the same under every resize rule; the product's will not."""
    shutil.rmtree(tmp_path / "pictures")
    write_pictures(tmp_path / "pictures", per_class=60, size=32)
    for path in (tmp_path / "pictures").rglob("*.png"):
        Image.open(path).crop((0, 0, 32, 32)).save(path)
    rules = ["data.resize=shorter-side", "data.shorter_side=32", "data.interpolation=nearest"]
    results = [
        run_recipe(load_recipe(tiny_recipe, more), tmp_path / "runs", SilentProgress(), until="finetune")
        for more in ([], rules)
    ]
    assert results[0].stages["data"].digest == results[1].stages["data"].digest
    assert not results[1].stages["finetune"].cached


def test_too_few_pictures_to_calibrate_fail_the_int8_variant_alone(tiny_recipe, tmp_path):
    shutil.rmtree(tmp_path / "pictures")
    write_pictures(tmp_path / "pictures", per_class=12)
    result = run_recipe(load_recipe(tiny_recipe), tmp_path / "runs", SilentProgress())
    rows = {v["name"]: v for v in result.report["variants"]}
    assert "Calibration has 21 images, wanted at least 32" in rows["int8"]["reason"]
    assert rows["fp32"]["accuracy"]["images"] == 9


# -- a benchmark that is interrupted

QUICK = (
    "enabled=true",
    "processes=3",
    "blocks=2",
    "block_seconds=0.01",
    "side_blocks=1",
    'peers=["onnxruntime"]',
)


@pytest.mark.slow
def test_bench_that_is_interrupted_goes_on_with_the_same_command(tiny_run, launcher, tmp_path):
    runs = shutil.copytree(tiny_run[1], tmp_path / "runs", symlinks=True)
    options = [part for value in QUICK for part in ("--set", f"benchmark.{value}")]
    arguments = ("bench", tiny_run[0], "--runs", runs, "--json", *options)
    process = launcher.start(*arguments, folder=tmp_path)
    end = time.monotonic() + 120
    while not (kept := sorted((runs / "tiny" / "stages").glob("benchmark/.partial-*/bench-round-1.json"))):
        assert process.poll() is None, process.log.read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    before, started = kept[0].read_bytes(), time.monotonic()
    process.send(signal.SIGINT)
    assert process.wait(20) == 130
    assert time.monotonic() - started < 5
    assert json.loads(process.out.read_text())["error"]["code"] == "interrupted"
    assert kept[0].read_bytes() == before
    rounds = sorted(path.name for path in kept[0].parent.glob("bench-round-*.json"))

    process = launcher.start(*arguments, folder=tmp_path)
    assert process.wait(200) == 0
    assert f"goes on after round {len(rounds)} of 3" in process.log.read_text()
    report = json.loads((runs / "tiny" / "bundle" / "report.json").read_text())
    benchmark = report["benchmark"]
    kept_times = json.loads(before)["values"]["blocks"][0]
    found = [b for b in benchmark["measurements"][0]["blocks"] if b["process"] == 0]
    assert [b["times_us"] for b in found] == [[round(t / 1000) for t in b["times_ns"]] for b in kept_times]
    assert [session["rounds"] for session in benchmark["sessions"]] == [
        list(range(1, len(rounds) + 1)),
        list(range(len(rounds) + 1, 4)),
    ]
    # Nothing of the making is left in the stage, and the report has the peers.
    [folder] = (runs / "tiny" / "stages" / "benchmark").glob("[!.]*")
    assert [entry.name for entry in (folder / "out").iterdir()] == ["benchmark.json"]
    peers = report["peers"]
    assert [(row["name"], row["precision"]) for row in peers] == [
        ("onnxruntime:fp32", "fp32"),
        ("onnxruntime:int8", "int8"),
    ]
    assert all(row["latency"]["p50_ms"] > 0 and row["latency"]["device"] == "cpu" for row in peers)


def test_forced_stage_starts_anew_unless_the_interrupted_attempt_was_forced_too(tmp_path):
    from edgekiln.pipeline.workspace.store import StageStore

    store = StageStore(tmp_path)

    def attempt(forced):
        folder = store.begin("benchmark", "key", resume=True, forced=forced)
        found = sorted(entry.name for entry in folder.iterdir())
        (folder / "round-1").write_text("x")
        return found

    assert attempt(False) == []
    assert attempt(False) == ["round-1"]
    assert attempt(True) == []  # measured again
    assert attempt(True) == ["round-1"]  # goes on with that
    store.finish("benchmark", "key", 1.0, {})
    assert attempt(True) == []
