"""Comparing bundles: regressions are found, noise is not one, and unlike work is refused with the reason."""

import json
import re
import shutil
from importlib.metadata import version

import numpy as np
import pytest

from edgekiln.benchmarks.comparing.compare import compare_bundles
from edgekiln.runtime.bundles.judged_with import VERDICT_KIND
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, write_manifest
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import BundleError, UntrustedError, UsageError


@pytest.fixture
def bundles(tiny_run, tmp_path):
    """Two copies of one bundle, and a function that changes the second and signs it off again."""
    for name in ("a", "b"):
        shutil.copytree(tiny_run[2].bundle, tmp_path / name)

    def change(manifest=None, report=None, **arrays):
        folder = tmp_path / "b"
        with np.load(folder / "test_logits.npz") as old:
            np.savez(folder / "test_logits.npz", **({key: old[key] for key in old.files} | arrays))
        document = json.loads((folder / MANIFEST_NAME).read_text())
        document |= manifest or {}
        if report is not None:
            values = json.loads((folder / "report.json").read_text())
            report(values)
            (folder / "report.json").write_text(json.dumps(values))
        write_manifest(folder, {k: v for k, v in document.items() if k not in {"files", "schema_version"}})

    return tmp_path / "a", tmp_path / "b", change


def find(comparison, engine, figure):
    return next(c for c in comparison.changes if (c.engine, c.figure) == (engine, figure))


def with_speedup(value, width=0.02):
    def edit(report):
        report["variants"][1]["speedup"] = {
            "value": value, "low": value * (1 - width), "high": value * (1 + width),
        }  # fmt: skip

    return edit


def test_the_same_bundle_has_no_regression(bundles):
    before, after, _ = bundles
    result = compare_bundles(before, after)
    assert not result.regressions
    change = find(result, "int8", "top1")
    assert (change.change, change.before) == (0, change.after)
    assert change.low < 0 < change.high


def test_an_engine_that_lost_its_answers_is_a_regression_and_the_others_are_not(bundles):
    before, after, change = bundles
    logits = np.load(after / "test_logits.npz")["logits.int8"]
    change(**{"logits.int8": np.roll(logits, 1, axis=1)})
    result = compare_bundles(before, after)
    assert [(c.engine, c.figure) for c in result.regressions] == [("int8", "top1")]
    worse = result.regressions[0]
    assert worse.change < -0.5
    assert worse.high < 0
    assert "30 broken" in worse.reason or "broken" in worse.reason


def test_a_loss_inside_the_budget_is_none(bundles):
    before, after, change = bundles
    logits = np.load(after / "test_logits.npz")["logits.int8"].copy()
    logits[:10] = np.roll(logits[:10], 1, axis=1)
    change(**{"logits.int8": logits})
    assert compare_bundles(before, after).regressions
    assert not compare_bundles(before, after, max_drop=0.3).regressions


def test_pictures_are_matched_by_content_not_by_order(bundles):
    before, after, change = bundles
    with np.load(after / "test_logits.npz") as arrays:
        order = np.arange(30)[::-1]
        change(**{key: arrays[key][order] for key in arrays.files})
    assert find(compare_bundles(before, after), "fp32", "top1").change == 0


def test_only_pictures_in_both_count(bundles):
    before, after, change = bundles
    with np.load(after / "test_logits.npz") as arrays:
        change(**{key: arrays[key][:18] for key in arrays.files})
    assert "of 18 pictures" in find(compare_bundles(before, after), "fp32", "top1").reason


def test_nothing_in_common_is_refused(bundles):
    before, after, change = bundles
    change(image_sha256=np.array(["0" * 64] * 30))
    with pytest.raises(UsageError, match="judged on different pictures: none of 30"):
        compare_bundles(before, after)


def test_fewer_than_half_of_the_pictures_in_common_are_refused(bundles):
    before, after, change = bundles
    with np.load(after / "test_logits.npz") as arrays:
        change(**{key: arrays[key][:14] for key in arrays.files})
    told = "14 are in both, of 30 in the first and 14 in the second"
    with pytest.raises(UsageError, match=told) as refused:
        compare_bundles(before, after)
    assert refused.value.hint == "Judge both on the same test split."
    with pytest.raises(UsageError, match="14 are in both, of 14 in the first and 30 in the second"):
        compare_bundles(after, before)


def test_other_labels_are_not_compared(bundles):
    before, after, change = bundles
    change(labels=(np.load(after / "test_logits.npz")["labels"] + 1) % 3)
    change = find(compare_bundles(before, after), "fp32", "top1")
    assert (change.verdict, change.reason) == (
        "not compared", "the same pictures have other labels in the two bundles",
    )  # fmt: skip


def test_engines_in_one_bundle_only_are_named(bundles, tiny_run):
    before, after, change = bundles
    document = json.loads((after / MANIFEST_NAME).read_text())
    change(manifest={"variants": document["variants"][:1]})
    result = compare_bundles(before, after)
    assert (result.added, result.removed) == ((), ("int8",))
    assert compare_bundles(after, before).regressions == ()  # a new engine is none


# -- engines that were lost


def stand(folder, verdict, reason="told so", *, judged=True):
    """The variants of a manifest, with int8 as a run would have left it."""
    variants = json.loads((folder / MANIFEST_NAME).read_text())["variants"]
    variants[1] |= {"verdict": verdict, "reason": reason}
    if not judged:
        variants[1]["figures"].pop("accuracy", None)
    return variants


def set_out(bundles, verdict, *, judged=True):
    """Give both bundles an int8 of that verdict."""
    before, after, change = bundles
    change(manifest={"variants": stand(after, verdict, judged=judged)})
    shutil.rmtree(before)
    shutil.copytree(after, before)


def losses(comparison):
    return [(c.engine, c.reason) for c in comparison.regressions if c.figure == "verdict"]


def test_a_passing_engine_that_is_gone_is_a_regression(bundles):
    set_out(bundles, "pass")
    before, after, change = bundles
    change(manifest={"variants": stand(after, "pass")[:1]})
    assert losses(compare_bundles(before, after)) == [("int8", f"pass before, and not in {after}")]


@pytest.mark.parametrize("verdict", ["not-run", "unverified", "fail"])
def test_a_passing_engine_that_broke_is_a_regression_with_its_reason(bundles, verdict):
    set_out(bundles, "pass")
    before, after, change = bundles
    change(manifest={"variants": stand(after, verdict, "no kernel for it", judged=False)})
    assert losses(compare_bundles(before, after)) == [
        ("int8", f"pass before, {verdict} now: no kernel for it")
    ]


def test_a_pass_that_became_a_fail_is_a_regression_and_a_doubt_is_none(bundles):
    set_out(bundles, "pass")
    before, after, change = bundles
    change(manifest={"variants": stand(after, "fail", "lost 2 points")})
    assert losses(compare_bundles(before, after)) == [("int8", "pass before, fail now: lost 2 points")]
    change(manifest={"variants": stand(after, "inconclusive")})
    assert compare_bundles(before, after).regressions == ()


@pytest.mark.parametrize("verdict", ["not-run", "unverified", "fail"])
def test_an_engine_that_was_never_judged_cannot_be_lost(bundles, verdict):
    set_out(bundles, verdict, judged=False)
    before, after, change = bundles
    assert compare_bundles(before, after).regressions == ()
    change(manifest={"variants": stand(after, verdict)[:1]})
    assert compare_bundles(before, after).regressions == ()


def test_a_loss_in_reports_alone_is_one_too(bundles, tmp_path):
    set_out(bundles, "pass")

    def stood(report, verdict):
        report["variants"][1] |= {"verdict": verdict, "reason": "no kernel for it"}

    before = report_of(bundles[0], tmp_path / "before.json", lambda report: stood(report, "pass"))
    after = report_of(bundles[0], tmp_path / "after.json", lambda report: stood(report, "not-run"))
    assert losses(compare_bundles(before, after)) == [("int8", "pass before, not-run now: no kernel for it")]


def test_command_exits_3_when_an_engine_is_gone_and_tells_why(bundles, capsys):
    from edgekiln.pipeline.cli import main

    set_out(bundles, "pass")
    before, after, change = bundles
    change(manifest={"variants": stand(after, "not-run", "no NVIDIA GPU", judged=False)})
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(before), str(after)])
    out, err = capsys.readouterr()
    assert ended.value.code == 3
    assert "pass before, not-run now: no NVIDIA GPU" in out
    assert "int8 (verdict)" in err


def test_speed_is_compared_with_both_intervals(bundles):
    before, after, change = bundles
    shutil.rmtree(before)
    change(report=with_speedup(4.0))
    shutil.copytree(after, before)
    change(report=with_speedup(3.0))
    worse = find(compare_bundles(before, after), "int8", "speed")
    assert worse.verdict == "worse"
    assert worse.change == pytest.approx(0.75)
    # two errors of 2 % each: 2.8 % together
    assert worse.high == pytest.approx(0.75 * 1.0285, rel=2e-3)
    change(report=with_speedup(3.95))
    assert find(compare_bundles(before, after), "int8", "speed").verdict == "same"
    change(report=with_speedup(3.9, width=0.2))
    assert find(compare_bundles(before, after), "int8", "speed").verdict == "undecided"
    change(report=with_speedup(5.0))
    assert find(compare_bundles(before, after), "int8", "speed").verdict == "better"


def test_speed_on_another_machine_is_not_compared(bundles):
    before, after, change = bundles
    change(report=with_speedup(4.0))
    shutil.rmtree(before)
    shutil.copytree(after, before)

    def elsewhere(report):
        report["machine"]["cpu"] = "Another CPU"

    change(report=elsewhere)
    assert "timed on different machines (cpu" in find(compare_bundles(before, after), "int8", "speed").reason


def test_speed_that_was_never_measured_is_not_compared(bundles):
    before, after, _ = bundles
    assert "has no valid speed-up" in find(compare_bundles(before, after), "int8", "speed").reason


def test_a_bundle_of_a_newer_schema_is_refused(bundles):
    before, after, _ = bundles
    text = (after / MANIFEST_NAME).read_text().replace('"schema_version": "1.', '"schema_version": "2.')
    (after / MANIFEST_NAME).write_text(text)
    with pytest.raises(BundleError, match="schema version 2"):
        compare_bundles(before, after)


def test_unreadable_answers_are_one_line(bundles):
    before, after, _change = bundles
    (after / "test_logits.npz").write_bytes(b"PK\x03\x04 cut short")
    document = json.loads((after / MANIFEST_NAME).read_text())
    write_manifest(after, {k: v for k, v in document.items() if k not in {"files", "schema_version"}})
    with pytest.raises(BundleError, match=r"The answers in .* cannot be read"):
        compare_bundles(before, after)


def test_speed_of_an_invalid_benchmark_is_refused_with_its_reason(bundles):
    before, after, change = bundles

    def invalid(report):
        validity = {"state": "invalid", "reasons": ["the baseline differs from itself: 1.02 .. 1.06"]}
        report["benchmark"] = {"validity": validity}

    change(report=invalid)
    shutil.rmtree(before)
    shutil.copytree(after, before)
    reason = find(compare_bundles(before, after), "int8", "speed").reason
    assert reason == f"the benchmark of {before} is invalid: the baseline differs from itself: 1.02 .. 1.06"


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [("batch", 8, "other batch sizes: 1 and 8"), ("boundary", "image", "other boundaries: call and image")],
)
def test_speed_of_other_work_is_not_compared(bundles, field, value, complaint):
    before, after, change = bundles

    def timed(report):
        with_speedup(4.0)(report)
        report["variants"][1]["latency"] = {"batch": 1, "boundary": "call"}

    change(report=timed)
    shutil.rmtree(before)
    shutil.copytree(after, before)
    change(report=lambda report: report["variants"][1]["latency"].update({field: value}))
    assert complaint in find(compare_bundles(before, after), "int8", "speed").reason


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (
            lambda report: report["machine"]["versions"].update(torch="99.0"),
            r"different versions of torch: \d.* and 99\.0",
        ),
        (
            lambda report: report["baseline"]["latency"].update(device="cuda"),
            "different devices: cpu and cuda",
        ),
    ],
)
def test_speed_over_another_baseline_is_not_compared(bundles, edit, complaint):
    before, after, change = bundles

    def timed(report):
        with_speedup(4.0)(report)
        report["baseline"]["latency"] = {"device": "cpu", "config": {"threads": 1, "channels_last": False}}

    change(report=timed)
    shutil.rmtree(before)
    shutil.copytree(after, before)

    def slower(report):
        with_speedup(3.0)(report)
        edit(report)

    change(report=slower)
    result = compare_bundles(before, after)
    assert not result.regressions
    assert re.search(complaint, find(result, "int8", "speed").reason)


def test_another_contract_is_refused_unless_it_is_asked_for(bundles):
    before, after, change = bundles
    contract = json.loads((after / MANIFEST_NAME).read_text())["contract"] | {"interpolation": "nearest"}
    change(manifest={"contract": contract, "contract_digest": Contract.from_dict(contract).digest})
    with pytest.raises(
        UsageError, match=r"prepare pictures otherwise \(interpolation: bilinear and nearest\)"
    ):
        compare_bundles(before, after)
    assert find(compare_bundles(before, after, other_contract=True), "int8", "top1").change == 0


def test_other_classes_are_refused(bundles):
    before, after, change = bundles
    contract = json.loads((after / MANIFEST_NAME).read_text())["contract"] | {"classes": ["a", "b", "c"]}
    change(manifest={"contract": contract, "contract_digest": Contract.from_dict(contract).digest})
    with pytest.raises(UsageError, match="one knows blue, green, red, the other a, b, c"):
        compare_bundles(before, after)


# -- reports and run folders


def report_of(folder, path, edit=lambda report: None):
    values = json.loads((folder / "report.json").read_text())
    edit(values)
    path.write_text(json.dumps(values))
    return path


def test_a_runs_folder_and_the_report_in_a_bundle_stand_for_the_bundle(tiny_run):
    _, runs, result = tiny_run
    for before in (runs / "tiny", result.bundle / "report.json"):
        found = find(compare_bundles(before, result.bundle), "int8", "top1")
        assert found.reason == "0 broken, 0 mended of 30 pictures"


def test_reports_alone_are_compared_unpaired_and_say_so(bundles, tmp_path):
    def lose(report):
        report["variants"][1]["accuracy"]["top1"] -= 0.5

    before = report_of(bundles[0], tmp_path / "before.json")
    after = report_of(bundles[0], tmp_path / "after.json", lose)
    result = compare_bundles(before, after)
    assert [(c.engine, c.figure) for c in result.regressions] == [("int8", "top1")]
    assert find(result, "fp32", "top1").verdict == "undecided"  # 30 images, unpaired: too wide for anything
    assert "right of 30, unpaired" in result.regressions[0].reason
    assert "A report alone holds no single answers" in result.notes[0]


def test_reports_on_other_images_are_refused(bundles, tmp_path):
    def elsewhere(report):
        report["data"]["test_digest"] = "0" * 64

    before = report_of(bundles[0], tmp_path / "before.json")
    with pytest.raises(UsageError, match="judged on different test images"):
        compare_bundles(before, report_of(bundles[0], tmp_path / "after.json", elsewhere))
    with pytest.raises(UsageError, match="judged on different test images"):
        compare_bundles(bundles[0], report_of(bundles[0], tmp_path / "after.json", elsewhere))
    older = report_of(bundles[0], tmp_path / "older.json", lambda report: report["data"].pop("test_digest"))
    with pytest.raises(UsageError, match="does not say which images it was judged on"):
        compare_bundles(before, older)


def test_pictures_on_one_side_only_are_counted(bundles):
    before, after, change = bundles
    with np.load(after / "test_logits.npz") as arrays:
        change(**{key: arrays[key][:18] for key in arrays.files})
    assert compare_bundles(before, after).notes == (
        "18 test pictures are in both; 12 in the first only, 0 in the second.",
    )


def test_verdicts_of_other_kinds_of_machines_are_told(bundles, tmp_path):
    before, after, change = bundles
    assert compare_bundles(before, after).notes == ()
    document = json.loads((after / MANIFEST_NAME).read_text())
    for variant in document["variants"]:
        variant["figures"][VERDICT_KIND] |= {"architecture": "riscv64", "features": []}
    change(manifest={"variants": document["variants"]})
    (note,) = compare_bundles(before, after).notes
    assert note.startswith("fp32, int8: judged on another kind of machine: ")
    assert note.endswith(
        "riscv64; onnxruntime " + ".".join(version("onnxruntime").split(".")[:2]) + " after."
    )
    for variant in document["variants"]:
        del variant["figures"][VERDICT_KIND]
    change(manifest={"variants": document["variants"]})
    assert compare_bundles(before, after).notes == ()  # of what is unknown nothing is said


def test_a_report_with_a_damaged_kind_is_one_line(bundles, tmp_path):
    report = report_of(
        bundles[0], tmp_path / "r.json", lambda r: r["variants"][0].update({VERDICT_KIND: [1]})
    )
    with pytest.raises(UntrustedError, match=r"r\.json is no report"):
        compare_bundles(report, report)


def test_command_exits_3_on_a_regression(bundles, capsys):
    from edgekiln.pipeline.cli import main

    before, after, change = bundles
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(before), str(after)])
    assert ended.value.code == 0
    assert "0 regressions" in capsys.readouterr().out
    logits = np.load(after / "test_logits.npz")["logits.int8"]
    change(**{"logits.int8": np.roll(logits, 1, axis=1)})
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(before), str(after), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (ended.value.code, document["ok"], document["regressions"]) == (3, False, 1)
    assert document["error"]["code"] == "gate"


# -- damaged and zipped sides


DAMAGES = {
    "no classes": lambda report: report["contract"].pop("classes"),
    "classes are none": lambda report: report["contract"].update(classes=None),
    "no low": lambda report: report["variants"][1]["speedup"].pop("low"),
    "low is 0": lambda report: report["variants"][1]["speedup"].update(low=0),
    "value is 0": lambda report: report["variants"][1]["speedup"].update(value=0),
    "value is text": lambda report: report["variants"][1]["speedup"].update(value="fast"),
    "no images": lambda report: report["variants"][1]["accuracy"].pop("images"),
    "no share": lambda report: report["variants"][1]["accuracy"].update(top1=None),
    "versions are a list": lambda report: report["machine"].update(versions=["torch"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_report_is_one_line_and_no_bug(bundles, tmp_path, capsys, damage):
    from edgekiln.pipeline.cli import main

    def damaged(report):
        with_speedup(4.0)(report)
        DAMAGES[damage](report)

    whole = report_of(bundles[0], tmp_path / "whole.json", with_speedup(4.0))
    torn = report_of(bundles[0], tmp_path / "torn.json", damaged)
    for sides in ((torn, whole), (whole, torn)):
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, sides)])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (4, "")
        assert "cannot be compared, it lacks something" in err
        assert len(err.splitlines()) == 1
    with pytest.raises(SystemExit):
        main(["compare", str(whole), str(torn), "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "untrusted"


def test_a_zipped_bundle_is_a_bundle(bundles, tmp_path):
    from edgekiln.runtime.bundles.archive_writer import write_zip
    from edgekiln.runtime.bundles.bundle import open_bundle

    before, after, change = bundles
    logits = np.load(after / "test_logits.npz")["logits.int8"]
    change(report=with_speedup(4.0), **{"logits.int8": np.roll(logits, 1, axis=1)})
    write_zip(open_bundle(after), tmp_path / "after.zip")
    zipped, unzipped = (compare_bundles(before, path) for path in (tmp_path / "after.zip", after))
    assert [(c.engine, c.figure) for c in zipped.regressions] == [("int8", "top1")]
    assert zipped.regressions == unzipped.regressions
    assert (
        "has no valid speed-up" in find(zipped, "int8", "speed").reason
    )  # of the first: the second's was read
    assert str(before) in find(zipped, "int8", "speed").reason
