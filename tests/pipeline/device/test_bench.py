"""`edgekiln bench BUNDLE`: every variant judged and timed on the machine that will run it, from the bundle alone."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edgekiln.benchmarks.comparing.compare import compare_bundles
from edgekiln.benchmarks.report import read_report, render_card, render_page, render_summary
from edgekiln.benchmarks.timing.inputs import save_inputs
from edgekiln.benchmarks.timing.plan import BenchmarkPlan
from edgekiln.benchmarks.timing.worker_process import open_worker
from edgekiln.pipeline.cli import main
from edgekiln.pipeline.device import bench, derived_bundle, timing
from edgekiln.pipeline.device.bench import BenchRequest, bench_on_device
from edgekiln.pipeline.device.pictures import find_pictures
from edgekiln.pipeline.proof.device_baseline import find_baseline
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.run import run_recipe
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime import load
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.bundles.source import hash_file
from edgekiln.runtime.cuda import probe_driver
from edgekiln.runtime.errors import DataError, EnvironmentProblem, ResourceError, UsageError

BLOCKED = ("torch", "torchvision", "timm", "onnx", "pydantic", "jinja2", "matplotlib", "safetensors")
BLOCK_IMPORTS = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""
SHORT = BenchmarkPlan(processes=2, blocks=4, block_seconds=0.01, side_blocks=1, min_blocks=4)

without_gpu = pytest.mark.skipif(
    probe_driver().problem is None, reason="this machine has a GPU: engines are built and run here"
)


def edit(bundle, change):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), "utf-8")


def add_gpu_variants(bundle):
    """One whose file a GPU would run, and one that nothing was built of yet."""
    shutil.copyfile(bundle / "fp32.onnx", bundle / "cuda.onnx")
    digest, size = hash_file(bundle / "cuda.onnx")

    def change(manifest):
        fp32 = next(v for v in manifest["variants"] if v["name"] == "fp32")
        manifest["files"]["cuda.onnx"] = {"sha256": digest, "size": size}
        cuda = {**fp32, "name": "cuda", "backend": "onnxruntime-cuda", "required": False}
        cuda |= {"file": "cuda.onnx", "files": ["cuda.onnx"]}
        built = {
            **cuda,
            "name": "trt",
            "backend": "tensorrt",
            "file": None,
            "files": [],
            "source": "cuda.onnx",
        }
        manifest["variants"] += [cuda, {**built, "verdict": "not-run"}]
        settings = manifest["provenance"]["recipe"]["benchmark"]
        settings |= {"processes": 2, "blocks": 4, "min_blocks": 4, "block_seconds": 0.01, "side_blocks": 1}

    edit(bundle, change)


@pytest.fixture(scope="session")
def benched(made_once, tiny_run):
    """(parent, derived bundle, what the command said), of a process that can import nothing of the build side."""
    recipe, _, result = tiny_run

    def make(folder):
        parent, out = folder / "parent", folder / "here"
        shutil.copytree(result.bundle, parent)
        add_gpu_variants(parent)
        blocked = folder / "blocked"
        blocked.mkdir()
        (blocked / "sitecustomize.py").write_text(BLOCK_IMPORTS)
        paths = os.pathsep.join([str(blocked), *(path for path in sys.path if path)])
        done = subprocess.run(
            [sys.executable, "-m", "edgekiln.pipeline", "bench", str(parent), "--data",
             str(recipe.parent / "pictures"), "--out", str(out), "--json"],
            capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return parent, out, json.loads(done.stdout)

    return made_once("device-bench", make)


@pytest.fixture
def pictures(tiny_run):
    return tiny_run[0].parent / "pictures"


@pytest.fixture
def parent(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run[2].bundle, tmp_path / "parent"))


def run(parent, out, pictures, **wishes):
    return bench_on_device(BenchRequest(parent, out, pictures, plan=SHORT, **wishes), SilentProgress())


def find(report, name):
    return next(v for v in report["variants"] if v["name"] == name)


def test_on_an_emulated_processor_variants_are_judged_and_nothing_is_timed(
    parent, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(bench, "read_emulation", lambda: "x86_64")
    report = run(parent, tmp_path / "here", pictures)
    assert report["benchmark"] is None
    assert find(report, "int8")["verdict"] == "pass"
    assert any(
        "Nothing was timed: this processor is emulated on x86_64" in told for told in report["notices"]
    )
    assert not any(v.figures.get("times") for v in open_bundle(tmp_path / "here").variants)


def test_without_the_build_side_every_variant_for_this_cpu_is_judged_and_timed(benched):
    parent, out, document = benched
    report, bundle = read_report(out / "report.json"), open_bundle(out)
    assert bundle.manifest["parent"]["digest"] == report["parent"]["digest"] == open_bundle(parent).digest
    for name in ("fp32", "int8"):
        variant = find(report, name)
        assert variant["verdict"] == "pass"
        assert variant["judged_images"] == {"here": 30, "parent": 30}
        assert variant["latency"]["p50_ms"] > 0
        assert variant["latency"]["peak_rss_mb"] > 10
        assert variant["latency"]["share_of_floor"] > 0 or report["benchmark"]["limits_problems"]
        assert "energy" in variant["latency"]
        assert bundle.variant(name).canaries is not None
        assert bundle.variant(name).figures["latency"] == variant["latency"]
        rates = report["benchmark"]["throughput"][name]
        assert [row["batch"] for row in rates["batches"]] == [1, 2, 4, 8, 16, 32]
        assert all(row["low"] <= row["images_per_second"] <= row["high"] for row in rates["batches"])
        assert [row["callers"] for row in rates["callers"]][:2] == [2, 4]
        assert all(row["p50_ms"] > 0 for row in (*rates["batches"], *rates["callers"]))
        assert not any("streams" in row for row in rates["callers"])  # a GPU's alone
        assert variant["latency"]["phases"] is None  # likewise; of a CPU the boundaries tell them
        assert set(report["benchmark"]["cold_start"][name]) == {"import_ms", "load_ms", "first_result_ms"}
    boundaries = {(m["name"], m["boundary"]) for m in report["benchmark"]["sides"]}
    assert boundaries == {(n, b) for n in ("fp32", "int8") for b in ("engine", "image")}
    layers = report["benchmark"]["layers"]
    assert layers["profiles"] == []
    assert set(layers["problems"]) == {"fp32", "int8"}
    assert "pip install 'onnx" in layers["problems"]["int8"]
    whens = [read["when"] for read in report["benchmark"]["conditions"]]
    assert whens == ["before", "round 1", "round 2", "after"]
    assert document["benchmark"]["measurements"][0]["p50_ms"] == find(report, "fp32")["latency"]["p50_ms"]
    assert "blocks" not in document["benchmark"]["measurements"][0]
    with load(out) as classifier:
        assert classifier.variant.name in {"fp32", "int8"}
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["blocked", "here", "parent"]


def test_layers_of_every_engine_are_timed_where_onnx_is_installed(parent, pictures, tmp_path):
    report = run(parent, tmp_path / "here", pictures)
    layers = report["benchmark"]["layers"]
    timed = {m["name"]: m["config"]["threads"] for m in report["benchmark"]["measurements"]}
    assert {p["engine"]: p["threads"] for p in layers["profiles"]} == timed
    assert layers["problems"] == {}
    for profile in layers["profiles"]:
        assert {row["precision"] for row in profile["layers"] if row["macs"]} == {profile["engine"]}
    [difference] = layers["differences"]
    assert [difference[side]["engine"] for side in ("before", "after")] == ["fp32", "int8"]
    page = render_page(report)
    assert "From fp32 to int8, by ONNX node" in page
    invalid = report["benchmark"]["validity"]["state"] == "invalid"
    assert invalid or "Where the milliseconds go" in page


def test_times_stay_where_the_benchmark_supports_them_and_nowhere_else(benched):
    _, out, document = benched
    valid = document["benchmark"]["validity"]["state"] != "invalid"
    times = [open_bundle(out).variant(name).times for name in ("fp32", "int8")]
    assert [len(own) for own in times] == ([1, 1] if valid else [0, 0])
    assert set(document["benchmark"]["ratios"]) == ({"int8"} if valid else set())


@without_gpu
def test_variants_for_a_gpu_are_told_with_the_reason_and_kept(benched):
    _, out, _ = benched
    report, bundle = read_report(out / "report.json"), open_bundle(out)
    assert find(report, "cuda")["verdict"] == find(report, "trt")["verdict"] == "not-run"
    assert find(report, "cuda")["reason"].startswith("not run here, because: ")
    assert "There is no NVIDIA driver" in find(report, "trt")["reason"]
    assert bundle.variant("cuda").files == ("cuda.onnx",)
    assert bundle.variant("trt").source == "cuda.onnx"
    assert find(report, "cuda")["latency"] is None
    assert bundle.variant("cuda").kind is None


def test_speed_ups_are_over_the_engine_that_took_pytorchs_place_and_say_so(benched, capsys):
    _, out, document = benched
    report = read_report(out / "report.json")
    assert report["benchmark"]["reference"]["name"] == "fp32"
    assert report["baseline"]["latency"] is None
    assert "no checkpoint was given" in report["notices"][0]
    for text in (render_page(report), render_card(report), render_summary(report)):
        assert "speed-up over fp32 [95% CI]" in text
    assert "edgekiln bench BUNDLE" in render_page(report)
    assert report["benchmark"]["validity"]["reasons"] == document["benchmark"]["validity"]["reasons"]
    assert not any("baseline" in reason for reason in report["benchmark"]["validity"]["reasons"])


def test_the_derived_bundle_is_compared_with_its_parent(benched):
    parent, out, _ = benched
    found = {(c.engine, c.figure): c for c in compare_bundles(parent, out).changes}
    assert found["int8", "top1"].change == 0
    assert found["int8", "speed"].verdict == "not compared"
    itself = {(c.engine, c.figure): c for c in compare_bundles(out, out).changes}
    assert itself["int8", "speed"].verdict in {"same", "undecided", "not compared"}


class Stopping(SilentProgress):
    """Ctrl-C when the second round begins."""

    def __init__(self) -> None:
        self.said = []

    def advance(self, done, total, note=""):
        if note.startswith("round 2"):
            raise KeyboardInterrupt

    def message(self, text):
        self.said.append(text)


def test_an_interrupted_bench_leaves_nothing_at_its_place_and_goes_on(
    parent, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(timing, "_add_costs", lambda *_: None)
    request = BenchRequest(parent, tmp_path / "here", pictures, plan=SHORT)
    stopping = Stopping()
    with pytest.raises(KeyboardInterrupt):
        bench_on_device(request, stopping)
    assert not (tmp_path / "here").exists()
    work = tmp_path / ".here.edgekiln-bench"
    kept = sorted(entry.name for entry in work.iterdir())
    assert kept == [".lock", "bench-round-1.json", "bench-search-0.json", "bench-search-1.json"]
    assert "the same command goes on with it" in stopping.said[-1]
    stopping.advance = lambda *_: None
    report = bench_on_device(request, stopping)
    assert "  goes on after round 1 of 2" in stopping.said
    assert [s["rounds"] for s in report["benchmark"]["sessions"]] == [[1], [2]]
    assert not work.exists()
    assert open_bundle(tmp_path / "here").variant("int8").verdict == "pass"


def test_a_disk_that_is_full_is_told_and_leaves_nothing(parent, pictures, tmp_path, monkeypatch):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(derived_bundle, "write_sbom", fill)
    with pytest.raises(ResourceError, match=r"No space is left for .*another disk"):
        run(parent, tmp_path / "here", pictures, timed=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["parent"]


def test_places_and_pictures_that_will_not_do(parent, pictures, tmp_path):
    with pytest.raises(UsageError, match="lies inside the bundle"):
        run(parent, parent / "here", pictures)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(UsageError, match="is in use"):
        run(parent, tmp_path / "used", pictures)
    with pytest.raises(DataError, match="None of the 1 files") as raised:
        run(parent, tmp_path / "here", tmp_path / "used")
    assert "`edgekiln build` without --data" in raised.value.hint  # bench itself cannot do without
    with pytest.raises(UsageError, match="There is no folder") as raised:
        run(parent, tmp_path / "here", tmp_path / "nowhere")
    assert "--data" in raised.value.hint
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["parent", "used"]


@without_gpu
def test_where_no_variant_runs_nothing_is_written(parent, pictures, tmp_path):
    edit(
        parent, lambda m: [v.update(backend="onnxruntime-cuda") for v in m["variants"] if v["name"] == "fp32"]
    )
    edit(parent, lambda m: m.update(variants=[v for v in m["variants"] if v["name"] == "fp32"]))
    shutil.move(parent / "int8.onnx", tmp_path / "int8.onnx")
    edit(parent, lambda m: m["files"].pop("int8.onnx"))
    with pytest.raises(EnvironmentProblem, match=r"No variant of .* runs here: fp32: not run here, because"):
        run(parent, tmp_path / "here", pictures)
    assert not (tmp_path / "here").exists()


def test_an_engine_that_answers_otherwise_than_where_it_was_judged_fails(parent, pictures, tmp_path, capsys):
    fp32, int8 = (open_bundle(parent).variant(name).canaries for name in ("fp32", "int8"))
    wrong = replace(int8, answers=-fp32.answers).to_dict()
    edit(parent, lambda m: next(v for v in m["variants"] if v["name"] == "int8").update(canaries=wrong))
    with pytest.raises(SystemExit) as left:
        main(["bench", str(parent), "--data", str(pictures), "--out", str(tmp_path / "here"), "--no-bench",
              "--json", "-q"])  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert (left.value.code, document["ok"]) == (3, False)
    assert "answers otherwise here than where it was judged before" in find(document, "int8")["reason"]
    assert find(document, "fp32")["verdict"] == "pass"
    assert document["benchmark"] is None
    assert open_bundle(tmp_path / "here").variant("int8").verdict == "fail"


def test_names_of_pictures_are_withheld_where_the_recipe_says_so(parent, pictures, tmp_path):
    for shown, key in ((True, r"\.png"), (False, "test picture ")):
        edit(parent, lambda m, shown=shown: m["provenance"]["recipe"]["report"].update(images=shown))
        known = find_pictures(open_bundle(parent), pictures, SilentProgress(), tmp_path)
        flips = [{"key": known.reference.keys[3], "label": "red", "before": "red", "now": "blue"}]
        row = {"name": "int8", "verdict": "pass", "figures": {}, "flips": flips}
        report = bench.device_report(open_bundle(parent), [row], known, None, None)
        assert report["variants"][0]["flips"][0]["key"] == (known.reference.keys[3] if shown else f"{key}3")


def test_pytorch_is_timed_from_the_runs_own_checkpoint_and_no_other(tiny_run, pictures, tmp_path):
    checkpoint = next(tiny_run[1].rglob("checkpoint.safetensors"))
    bundle = open_bundle(tiny_run[2].bundle)
    assert find_baseline(bundle) == "no checkpoint was given, and the bundle holds none"
    (tmp_path / "other").write_bytes(b"x")
    with pytest.raises(UsageError, match="its sha256 is another"):
        find_baseline(bundle, tmp_path / "other")
    make = find_baseline(bundle, checkpoint)
    known = find_pictures(bundle, pictures, SilentProgress(), tmp_path)
    save_inputs(tmp_path / "inputs.npz", known.frames[:4])
    contender = make(tmp_path, known.reference.logits[:4], False)
    with open_worker(tmp_path / "inputs.npz", contender) as worker:
        worker.open(contender.configs[0])
        worker.check_all()


def test_a_bundle_that_holds_its_checkpoint_brings_pytorch_along(tiny_run, pictures, tmp_path):
    path, runs, plain = tiny_run
    shutil.copytree(runs, tmp_path / "runs")
    recipe = load_recipe(path, ["ship.baseline=true"])
    progress = Stopping()
    result = run_recipe(recipe, tmp_path / "runs", progress)
    assert [name for name, record in result.stages.items() if not record.cached] == ["bundle"]
    bundle = open_bundle(result.bundle)
    [said] = [text for text in progress.said if "checkpoint" in text]
    assert f"{bundle.files['checkpoint.safetensors'].size / 1e6:.1f} MB" in said
    assert "checkpoint.safetensors" not in open_bundle(plain.bundle).files
    assert "ship" not in open_bundle(plain.bundle).manifest["provenance"]["recipe"]
    report = run(result.bundle, tmp_path / "here", pictures, timed=False)
    derived = open_bundle(tmp_path / "here")
    assert derived.read("checkpoint.safetensors") == bundle.read("checkpoint.safetensors")
    assert report["baseline"]["file"] == derived.manifest["baseline"]["file"] == "checkpoint.safetensors"
    known = find_pictures(derived, pictures, SilentProgress(), tmp_path)
    contender = find_baseline(derived)(tmp_path, known.reference.logits[:4], False)
    assert Path(contender.arguments["checkpoint"]).read_bytes() == bundle.read("checkpoint.safetensors")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x"], "Missing option '--data'"),
        (["--data", "x"], "Missing option '--out'"),
        (["--data", "x", "--out", "y", "--again"], "--again"),
        (["--data", "x", "--runtime"], "--data belong to the bench of a bundle"),
        (["--data", "x", "--out", "y", "--checkpoint", "nowhere"], "There is no checkpoint nowhere"),
    ],
)
def test_options_that_do_not_go_together(tiny_run, capsys, arguments, said):
    with pytest.raises(SystemExit) as left:
        main(["bench", str(tiny_run[2].bundle), *arguments])
    assert left.value.code == 2
    assert said in capsys.readouterr().err
