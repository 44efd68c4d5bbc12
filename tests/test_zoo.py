"""The zoo: a tiny architecture all the way, going on where it was, and workers that crash, hang or swell."""

import json
import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from reference.markdown import BEGIN, END, between_marks
from tests_support import ROOT
from zoo import __main__ as zoo
from zoo.architectures import ARCHITECTURES, VARIANTS, Architecture, make_recipe
from zoo.table import render, summarize
from zoo.watching import Limits, watch_worker

from edgekiln.pipeline.recipe import load_recipe

TINY = Architecture("edgekiln/tiny-cnn", 16)
RESULTS = ROOT / "benchmarks/results/zoo.json"


@pytest.mark.slow
def test_a_tiny_architecture_goes_all_the_way_and_is_not_run_again(tmp_path, monkeypatch):
    cpu = {name: text for name, text in VARIANTS.items() if name in {"fp32", "int8"}}
    monkeypatch.setattr(zoo, "make_recipe", lambda architecture: make_recipe(architecture, tuple(cpu)))
    out = tmp_path / "zoo.json"
    document = zoo.run_zoo([TINY], out)
    row = document["rows"][TINY.name]
    assert summarize(row) == "all the way", row
    assert [*row["steps"]] == ["train", "finetune", "export", "fp32", "int8", "bundle"]
    assert row["parameters"] == 1792 + 73856 + 512 * (128 * 16 + 1) + 5130
    assert row["images"] == 179
    assert row["variants"]["int8"]["share"] == 1.0
    assert 0.9 <= row["variants"]["int8"]["agreement"] <= 1
    assert row["variants"]["fp32"]["macs"] == 16 * 16 * 64 * 27 + 8 * 8 * 128 * 64 * 9 + 128 * 16 * 512 + 5120
    assert row["peak_mib"] > 100  # torch alone is more
    assert json.loads(out.read_text()) == document
    monkeypatch.setattr(zoo, "watch_worker", None)  # nothing is started
    assert zoo.run_zoo([TINY], out)["rows"] == document["rows"]


def test_every_architecture_has_a_recipe_of_its_own(tmp_path):
    names = {architecture.name for architecture in ARCHITECTURES}
    assert len(names) == len(ARCHITECTURES) >= 40
    for number, architecture in enumerate(ARCHITECTURES):
        (tmp_path / f"{number}.toml").write_text(make_recipe(architecture))
        recipe = load_recipe(tmp_path / f"{number}.toml")
        assert (recipe.backbone.model, recipe.data.size) == (architecture.model, architecture.size)
        assert [variant.name for variant in recipe.variants] == [*VARIANTS]


# -- a worker that ends otherwise than by its own end

WORKER = """
import json, os, signal, sys, time
def tell(step, state, **more):
    print(json.dumps({"step": step, "state": state, **more}), flush=True)
tell("finetune", "begun")
tell("finetune", "done", seconds=1)
left_out = [argument.partition("=")[2] for argument in sys.argv if argument.startswith("--without=")]
if "int8" not in left_out:
    tell("int8", "begun")
    END
tell("int8-rtx", "refused", reason="no such operator", seconds=1)
"""


def watch(end, without=(), limits=None, stop=None):
    command = (sys.executable, "-c", WORKER.replace("END", end))
    return watch_worker([], list(without), limits or Limits(60, 4096), stop or threading.Event(), command)


@pytest.mark.parametrize(
    ("end", "limits", "how", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", Limits(60, 4096), "crash", "the process ended with signal SIGSEGV"),
        ("sys.exit('gone wrong')", Limits(60, 4096), "crash", "the process ended with exit status 1: gone wrong"),
        ("time.sleep(60)", Limits(2, 4096), "limit", "it went beyond 2 s"),
        ("kept = bytearray(300 << 20); time.sleep(60)", Limits(60, 200), "limit", "it went beyond 200 MiB"),
        (
            "import subprocess; subprocess.run("
            "[sys.executable, '-c', 'import time; kept = bytearray(300 << 20); time.sleep(60)'])",
            Limits(60, 200), "limit", "it went beyond 200 MiB",
        ),
    ],
)  # fmt: skip
def test_what_ended_a_worker_is_told_with_its_step(end, limits, how, reason):
    watched = watch(end, limits=limits)
    assert (watched.ended_in, watched.how, watched.reason) == ("int8", how, reason)
    assert watched.steps["finetune"] == {"state": "done", "seconds": 1}


def test_a_worker_that_ends_by_itself_ended_in_no_step():
    watched = watch("", without=["int8"])
    assert watched.ended_in is None
    assert watched.steps["int8-rtx"]["state"] == "refused"


def test_an_interrupted_zoo_ends_its_workers_and_keeps_no_row_of_them(tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    end = f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"

    def run_one(architecture, limits, stop):
        if architecture is TINY:
            return watch(end, (), limits, stop)
        while not pids.exists():
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "_run_one", run_one)
    with pytest.raises(KeyboardInterrupt):
        zoo.run_zoo([ARCHITECTURES[0], TINY, ARCHITECTURES[1]], tmp_path / "zoo.json", jobs=2)
    assert not (tmp_path / "zoo.json").exists()
    for pid in pids.read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_the_step_that_crashed_is_left_out_and_the_others_go_on(monkeypatch, tmp_path):
    def crash_once(arguments, without, limits, stop):
        return watch("os.kill(os.getpid(), signal.SIGSEGV)", without, limits, stop)

    monkeypatch.setattr(zoo, "watch_worker", crash_once)
    row = zoo.run_zoo([TINY], tmp_path / "zoo.json")["rows"][TINY.name]
    assert row["steps"]["int8"]["state"] == "crash"
    assert row["steps"]["int8-rtx"]["state"] == "refused"
    assert summarize(row) == (
        "crash: int8: the process ended with signal SIGSEGV; refused: int8-rtx: no such operator"
    )
    monkeypatch.setattr(zoo, "ARCHITECTURES", [TINY])
    assert zoo.main(["--out", str(tmp_path / "zoo.json")]) == 3  # a crash is a finding


def test_a_refusal_of_one_variant_hides_no_other(tmp_path, monkeypatch):
    from zoo import worker

    from edgekiln.runtime.errors import PrecisionError

    seen = []

    def run(recipe, runs, progress, *, until, variants=()):
        seen.append((until, tuple(variants), [v.name for v in recipe.variants]))
        if variants == ("int8",):
            raise PrecisionError("half of it stays in float")
        if variants == ("fp16-rtx",):
            raise KeyError("x")
        return SimpleNamespace(stages={"data": SimpleNamespace(folder=tmp_path)})

    monkeypatch.setattr(worker, "run_recipe", run)
    monkeypatch.setattr(worker, "train_weights", lambda *_: None)
    monkeypatch.setattr(worker, "_read_report", lambda result, recipe: {"images": 1})
    (tmp_path / "recipe.toml").write_text(make_recipe(TINY))
    events = list(worker.run_steps(tmp_path, frozenset({"int8-openvino"})))
    ends = {event["step"]: event["state"] for event in events if event["state"] != "begun"}
    assert ends == {
        "train": "done", "finetune": "done", "export": "done", "fp32": "done", "int8": "refused", "fp16-rtx": "crash",
        "int8-rtx": "done", "bundle": "done",
    }  # fmt: skip
    assert seen[-1] == (None, (), ["fp32", "int8-rtx"])
    assert {"images": 1}.items() <= events[-1].items()


# -- the table


MACHINE = {
    "cpu": "A CPU",
    "cores": 2,
    "vnni": False,
    "python": "3.11.7",
    "versions": dict.fromkeys(
        ("torch", "timm", "torchvision", "onnxruntime", "openvino", "tensorrt-rtx"), "1.2"
    ),
}


def row(**changes):
    variant = {
        "failure": None,
        "bytes": 2_500_000,
        "macs": 7_000_000,
        "share": 0.98,
        "agreement": 0.99,
        "lint": 0,
    }
    return {
        "parameters": 3_000_000,
        "images": 100,
        "top1": 0.87,
        "weights": "none",
        "date": "2026-11-30",
        "seconds": 61.4,
        "steps": {"finetune": {"state": "done", "seconds": 1}},
        "variants": dict.fromkeys(VARIANTS, variant),
        **changes,
    }


def test_the_table_tells_figures_and_why_the_others_ended():
    few = {**row()["variants"], "int8": {**row()["variants"]["int8"], "agreement": 0.5}}
    refused = {**row()["variants"], "int8-rtx": {**row()["variants"]["int8"], "failure": "a scale of zero"}}
    ended = {
        "steps": {"export": {"state": "refused", "reason": "no\nsuch operator"}},
        "seconds": 5.0,
        "weights": "package:a",
        "date": "2026-11-28",
    }
    text = render(
        {
            "machine": MACHINE,
            "rows": {
                "timm/a@64": row(),
                "timm/b@64": row(variants=few),
                "timm/c@64": row(variants=refused),
                "timm/d@64": ended,
            },
        }
    )
    flat = " ".join(text.split())
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert flat.startswith(
        "1 of 4 went all the way, 2 refused with a reason, 1 lossy, none crashed. "
        f"{len(ARCHITECTURES)} of the zoo's {len(ARCHITECTURES)} have not been run yet. "
        "Made on 2026-11-28 to 2026-11-30, on A CPU, 2 cores, without VNNI; Python 3.11.7, torch 1.2, timm 1.2, "
    )
    assert "| `timm/d@64`, ImageNet's weights | - |" in text
    assert "| `timm/a@64` | 3.0 M | 7 M | 87.0 % | 2.5 MB | 2.5 MB | 98.0 % / 99.0 % |" in text
    assert "- `timm/b@64`: lossy: int8: 50.0 % of 100 answers are PyTorch's" in flat
    assert "- `timm/c@64`: refused: int8-rtx: a scale of zero" in flat
    assert "- `timm/d@64`: refused: export: no such operator" in flat


def test_the_page_shows_the_kept_result():
    page = (ROOT / "docs/backbones.md").read_text("utf-8")
    assert between_marks(page) == render(json.loads(RESULTS.read_text("utf-8"))), (
        "stale: PYTHONPATH=tests python -m zoo --out benchmarks/results/zoo.json --into docs/backbones.md"
    )


def test_into_puts_the_table_into_a_page(tmp_path):
    (tmp_path / "zoo.json").write_text(json.dumps({"machine": MACHINE, "rows": {"timm/a@64": row()}}))
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{BEGIN}\n\nold\n\n{END}\n\nbelow\n")
    assert zoo.main(["--out", str(tmp_path / "zoo.json"), "--into", str(page)]) == 0
    assert "`timm/a@64`" in page.read_text()
    assert page.read_text().endswith(f"{END}\n\nbelow\n")
