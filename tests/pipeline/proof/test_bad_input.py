"""What may be wrong with reports, splits and answers: each is one clear line and the right exit code."""

import json
import shutil

import numpy as np
import pytest
from tests_support import TINY_RECIPE, write_pictures

from edgekiln.pipeline.cli import main
from edgekiln.runtime.bundles.manifest import MANIFEST_NAME, write_manifest


def newer_schema(folder, bundle):
    text = (bundle / "report.json").read_text().replace('"schema_version": "1.2", ', "", 1)
    values = json.loads(text) | {"schema_version": "2.0"}
    (folder / "newer.json").write_text(json.dumps(values))
    return ["report", folder / "newer.json"]


def newer_schema_compared(folder, bundle):
    return ["compare", newer_schema(folder, bundle)[1], bundle]


def truncated(folder, bundle):
    text = (bundle / "report.json").read_text()
    (folder / "cut.json").write_text(text[: len(text) // 2])
    return ["report", folder / "cut.json"]


def truncated_compared(folder, bundle):
    return ["compare", bundle, truncated(folder, bundle)[1]]


def other_images(folder, bundle):
    for name, digest in (("a", "0"), ("b", "1")):
        values = json.loads((bundle / "report.json").read_text())
        values["data"]["test_digest"] = digest * 64
        (folder / f"{name}.json").write_text(json.dumps(values))
    return ["compare", folder / "a.json", folder / "b.json"]


def not_finite(folder, bundle):
    copy = shutil.copytree(bundle, folder / "copy")
    with np.load(copy / "test_logits.npz") as arrays:
        logits = arrays["logits.int8"].copy()
        logits[3, 1] = np.nan
        np.savez(
            copy / "test_logits.npz", **({key: arrays[key] for key in arrays.files} | {"logits.int8": logits})
        )
    document = json.loads((copy / MANIFEST_NAME).read_text())
    write_manifest(copy, {k: v for k, v in document.items() if k not in {"files", "schema_version"}})
    return ["compare", bundle, copy]


def empty_split(folder, bundle):
    write_pictures(folder / "pictures" / "train", per_class=12)
    for name in ("blue", "green", "red"):
        (folder / "pictures" / "test" / name).mkdir(parents=True)
    (folder / "tiny.toml").write_text(TINY_RECIPE)
    return ["run", folder / "tiny.toml", "--runs", folder / "runs", "-q"]


def class_without_training(folder, bundle):
    write_pictures(folder / "pictures", per_class=12)
    (folder / "pictures" / "white").mkdir()
    (folder / "tiny.toml").write_text(TINY_RECIPE)
    return ["run", folder / "tiny.toml", "--runs", folder / "runs", "-q"]


CASES = [
    (newer_schema, 4, "has schema version 2.0, this edgekiln reads 1.x. Update edgekiln."),
    (newer_schema_compared, 4, "has schema version 2.0, this edgekiln reads 1.x. Update edgekiln."),
    (truncated, 4, "is no JSON that can be read, it may be cut off"),
    (truncated_compared, 4, "is no JSON that can be read, it may be cut off"),
    (other_images, 2, "judged on different test images"),
    (not_finite, 3, "holds NaN or infinite logits of int8 for 1 of 30 pictures"),
    (empty_split, 2, "holds no pictures in class folders"),
    (class_without_training, 2, "Class 'white' has no picture in train, in "),
]


@pytest.mark.parametrize(("make", "code", "line"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_input_is_one_line_and_an_exit_code(tiny_run, tmp_path, capsys, make, code, line):
    arguments = [str(argument) for argument in make(tmp_path, tiny_run[2].bundle)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (code, "")
    assert line in err
    assert len(err.strip().splitlines()) == 1
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert (ended.value.code, document["ok"]) == (code, False)
    assert line.partition(". Update")[0] in document["error"]["message"]


@pytest.mark.slow
def test_a_class_never_seen_in_test_is_told_and_does_not_count(tmp_path, capsys):
    write_pictures(tmp_path / "pictures" / "train")
    write_pictures(
        tmp_path / "others", per_class=12, size=30
    )  # none of train's: those would be left out there
    for name in ("blue", "red"):
        shutil.copytree(tmp_path / "others" / name, tmp_path / "pictures" / "test" / name)
    (tmp_path / "pictures" / "test" / "green").mkdir()
    (tmp_path / "tiny.toml").write_text(TINY_RECIPE)
    options = ["--set", "finetune.epochs=1", "--set", "gate.inconclusive=warn", "--set", "gate.max_drop=0.9"]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "tiny.toml"), "--runs", str(tmp_path / "runs"), "-q", *options])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Class 'green' has no picture in test: it is trained, and not judged there." in out
    report = json.loads((tmp_path / "runs" / "tiny" / "bundle" / "report.json").read_text())
    accuracy = report["baseline"]["accuracy"]
    assert accuracy["recall"][1] is None
    assert accuracy["balanced"] == pytest.approx((accuracy["recall"][0] + accuracy["recall"][2]) / 2)
