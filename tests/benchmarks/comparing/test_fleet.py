"""Devices side by side: what is told of each, which answers differ, and what is refused as unlike work."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekiln.benchmarks.comparing.fleet import Member, compare_fleet
from edgekiln.benchmarks.report.fleet import (
    fleet_headings,
    fleet_rows,
    render_fleet_page,
    render_fleet_summary,
)
from edgekiln.benchmarks.report.reading import REPORT_NAME
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, write_manifest
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import BundleError, NonFiniteError, UsageError

TIMED = {
    "p50_ms": 3.25,
    "p99_ms": 4.5,
    "config": {"threads": 2},
    "energy": None,
    "energy_reason": "no counter",
}
BENCHMARK = {
    "validity": {"state": "valid", "reasons": [], "self_ratio": [0.99, 1.01]},
    "reference": {"name": "fp32", "reason": "no checkpoint was given"},
    "cold_start": {"int8": {"import_ms": 100.0, "load_ms": 20.0, "first_result_ms": 3.0}},
    "throughput": {
        "int8": {"batches": [{"batch": 1, "callers": 1, "images_per_second": 410.0}], "callers": []}
    },
    "conditions": [],
}


@pytest.fixture
def devices(tiny_run, tmp_path):
    """Copies of one bundle by name, and a function that changes one and writes its manifest anew."""

    def change(name, manifest=None, report=None, **arrays):
        folder = tmp_path / name
        with np.load(folder / "test_logits.npz") as old:
            np.savez(folder / "test_logits.npz", **({key: old[key] for key in old.files} | arrays))
        document = json.loads((folder / MANIFEST_NAME).read_text())
        document |= manifest or {}
        if report is not None:
            values = json.loads((folder / REPORT_NAME).read_text())
            report(values)
            (folder / REPORT_NAME).write_text(json.dumps(values))
        write_manifest(folder, {k: v for k, v in document.items() if k not in {"files", "schema_version"}})

    for name in ("orin", "pi5"):
        shutil.copytree(tiny_run[2].bundle, tmp_path / name)
    return [Member(name, tmp_path / name) for name in ("orin", "pi5")], change


def logits_of(member, name):
    with np.load(member.path / "test_logits.npz") as arrays:
        return arrays[f"logits.{name}"], arrays["labels"]


def time_int8(report):
    report["benchmark"] = BENCHMARK
    for row in report["variants"]:
        row["latency"] = TIMED | {"p50_ms": 3.25 if row["name"] == "int8" else 9.0}


def find(fleet, device, variant):
    own = next(d for d in fleet["devices"] if d["name"] == device)
    return next(v for v in own["variants"] if v["name"] == variant)


def test_each_device_is_told_with_what_its_report_says(devices):
    members, change = devices
    change("pi5", report=time_int8)
    fleet = compare_fleet(members)
    orin, pi5 = fleet["devices"]
    assert orin["passing"] == pi5["passing"] == ["fp32", "int8"]
    assert (orin["best"], pi5["best"]) == (None, "int8")  # on orin nothing was timed
    assert pi5["pareto"][0] == "int8"
    int8 = find(fleet, "pi5", "int8")
    assert (int8["latency"]["p50_ms"], int8["images_per_second"]) == (3.25, 410.0)
    row = dict(
        zip(
            fleet_headings(fleet), next(r for r in fleet_rows(fleet) if r[:2] == ("pi5", "int8")), strict=True
        )
    )
    assert (row["p50 ms"], row["p99 ms"], row["cold start ms"], row["images/s"]) == (
        "3.25",
        "4.50",
        "123",
        "410",
    )
    assert row[
        "drop, points [95% CI]"
    ] == f"{100 * int8['drop']['value']:+.2f} [{100 * int8['drop']['low']:+.2f}, " + (
        f"{100 * int8['drop']['high']:+.2f}]"
    )
    assert fleet["failing"] == []
    assert json.loads(json.dumps(fleet)) == fleet


def test_answers_that_differ_are_told_with_their_picture_and_who_said_what(devices):
    members, change = devices
    logits, labels = logits_of(members[1], "int8")
    changed = logits.copy()
    changed[4] = np.roll(changed[4], 1)
    classes = json.loads((members[1].path / REPORT_NAME).read_text())["data"]["classes"]
    right, wrong = (classes[int(row.argmax())] for row in (logits[4], changed[4]))

    def flip(report):  # as the device's own judge would list it
        own = next(v for v in report["variants"] if v["name"] == "int8")
        told = {
            "key": "night/7.png",
            "label": classes[labels[4]],
            "before": right,
            "now": wrong,
            "margin": 0.1,
        }
        assert own["flips"] == []
        own["flips"] = [told]

    change("pi5", report=flip, **{"logits.int8": changed})
    fp32, int8 = compare_fleet(members)["differences"]
    assert (fp32["variant"], fp32["answers"], fp32["max_logit_difference"]) == ("fp32", [], 0.0)
    assert int8["images"] == 30
    assert int8["max_logit_difference"] == pytest.approx(np.abs(changed - logits).max())
    (answer,) = int8["answers"]
    assert (answer["picture"], answer["label"]) == ("night/7.png", classes[labels[4]])
    assert answer["by_device"] == {"orin": right, "pi5": wrong}
    page = render_fleet_page(compare_fleet(members))
    assert "1 of 30 answers differs between devices" in page
    assert "night/7.png" in page


def test_pictures_are_matched_by_content_not_by_order(devices):
    members, change = devices
    with np.load(members[1].path / "test_logits.npz") as arrays:
        order = np.arange(30)[::-1]
        change("pi5", **{key: arrays[key][order] for key in arrays.files})
    assert all(entry["answers"] == [] for entry in compare_fleet(members)["differences"])


def test_no_time_ratio_or_energy_of_an_emulated_processor_is_told(devices):
    members, change = devices

    def emulate(report):
        time_int8(report)
        report["machine"]["emulated_on"] = "x86_64"
        for row in report["variants"]:
            row["speedup"] = {"value": 2.0, "low": 1.9, "high": 2.1}

    change("pi5", report=emulate)
    fleet = compare_fleet(members)
    pi5 = fleet["devices"][1]
    assert (pi5["benchmark"], pi5["pareto"], pi5["best"]) == (None, [], None)
    assert pi5["passing"] == ["fp32", "int8"]
    for row in (pi5["baseline"], *pi5["variants"]):
        assert {row[key] for key in ("latency", "speedup", "cold_start", "images_per_second")} == {None}
    for text in (render_fleet_page(fleet), render_fleet_summary(fleet)):
        assert "pi5 is an emulated processor, on x86_64" in text
        assert "3.25" not in text
    told = compare_fleet([members[0], Member("pi5", members[0].path.with_name("pi5"), emulated=True)])
    assert told["devices"][1]["emulated_on"]


def test_a_required_device_fails_without_a_variant_that_passes_and_without_a_result(devices):
    members, change = devices

    def fail(report):
        for row in report["variants"]:
            row |= {"verdict": "fail", "reason": "it answers otherwise here"}

    change("pi5", report=fail)
    required = [Member(m.name, m.path, required=True) for m in members]
    lost = Member("server", None, required=True, why="ssh: connection refused")
    fleet = compare_fleet([*required, lost])
    assert fleet["failing"] == ["pi5", "server"]
    summary = render_fleet_summary(fleet)
    assert "No variant passes on pi5, server, which are required." in summary
    assert "server has no result: ssh: connection refused." in summary
    assert "**int8** on **pi5**: fail. it answers otherwise here" in summary
    assert compare_fleet([*members, lost])["failing"] == ["server"]
    with pytest.raises(UsageError, match=r"No device has a result: server: ssh: connection refused\."):
        compare_fleet([lost])


def other_labels(change, folder):
    with np.load(folder / "test_logits.npz") as arrays:
        change("pi5", labels=(arrays["labels"] + 1) % 3)


def other_weights(change, folder):
    with np.load(folder / "test_logits.npz") as arrays:
        change("pi5", **{"logits.baseline": arrays["logits.baseline"] + 1e-3})


def other_graph(change, folder):
    def edit(report):
        own = next(v for v in report["variants"] if v["name"] == "int8")
        own["sha256"] = dict.fromkeys(own["sha256"], "0" * 64)

    change("pi5", report=edit)


def other_contract(change, folder):
    contract = json.loads((folder / MANIFEST_NAME).read_text())["contract"]
    changed = Contract.from_dict({**contract, "interpolation": "bicubic"})
    assert changed.to_dict() != contract
    change("pi5", manifest={"contract": changed.to_dict(), "contract_digest": changed.digest})


def fewer_pictures(change, folder):
    def edit(report):
        report["data"] |= {"test_digest": "0" * 64, "counts": {"test": 29}}

    change("pi5", report=edit)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            other_contract,
            r"their contracts prepare pictures otherwise \(interpolation: bilinear and bicubic\)",
        ),
        (other_labels, r"other pictures, or with other labels \(30 and 30\)"),
        (fewer_pictures, r"other pictures, or with other labels \(30 and 29\)"),
        (other_weights, "their weights differ: PyTorch answered 30 of 30 pictures otherwise"),
        (other_graph, "int8 is another graph in each"),
    ],
)
def test_unlike_work_is_refused_with_what_differs(devices, make, told):
    members, change = devices
    make(change, members[1].path)
    with pytest.raises(UsageError, match=told) as refused:
        compare_fleet(members)
    assert "Bench the same bundle with the same pictures" in refused.value.hint


def test_what_proves_nothing_is_refused(devices, tmp_path):
    members, change = devices
    alone = Path(shutil.copy(members[0].path / REPORT_NAME, tmp_path / "alone.json"))
    with pytest.raises(UsageError, match="is a report alone"):
        compare_fleet([members[0], Member("alone", alone)])
    with (members[1].path / REPORT_NAME).open("a") as file:
        file.write(" ")
    with pytest.raises(BundleError):
        compare_fleet(members)
    (members[1].path / REPORT_NAME).unlink()
    change("pi5")
    with pytest.raises(UsageError, match="holds no report: nothing was judged there"):
        compare_fleet(members)


def test_answers_that_are_no_numbers_are_refused(devices):
    members, change = devices
    logits, _ = logits_of(members[1], "int8")
    logits[0, 0] = np.nan
    change("pi5", **{"logits.int8": logits})
    with pytest.raises(NonFiniteError, match="holds NaN or infinite logits of int8 for 1 of 30 pictures"):
        compare_fleet(members)


def test_another_gate_and_answers_that_were_not_kept_are_told(devices):
    members, change = devices

    def edit(report):
        report["recipe"]["gate"]["max_drop"] = 0.5

    with np.load(members[1].path / "test_logits.npz") as arrays:
        kept = {key: arrays[key] for key in arrays.files if key != "logits.int8"}
    np.savez(members[1].path / "test_logits.npz", **kept)
    change("pi5", report=edit)
    fleet = compare_fleet(members)
    assert fleet["notes"] == ["pi5: judged by another gate than orin."]
    assert [(e["variant"], e["not_kept"], e["images"]) for e in fleet["differences"]] == [
        ("fp32", [], 30),
        ("int8", ["pi5"], 0),
    ]
    assert "pi5: not compared, since only some of the pictures were there" in render_fleet_page(fleet)
