"""``recipe show|validate|schema``."""

import json
import sys
from pathlib import Path

import pytest
from tests_support import TENSORRT_VARIANTS, TINY_RECIPE

from edgekiln.pipeline.recipe import Recipe, load_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture
def engines_recipe(tmp_path):
    """A recipe with lists, nested tables and every kind of value."""
    path = tmp_path / "engines.toml"
    path.write_text(TINY_RECIPE.replace("[gate]", TENSORRT_VARIANTS + "[gate]"))
    return path


@pytest.mark.parametrize("options", [[], ["--origin"]])
def test_what_is_shown_is_the_same_recipe(edgekiln, engines_recipe, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    code, out, _ = edgekiln("recipe", "show", "engines.toml", *options)
    assert code == 0
    (tmp_path / "shown.toml").write_text(out)
    assert load_recipe(Path("shown.toml")).model_dump() == load_recipe(Path("engines.toml")).model_dump()


def test_every_key_is_shown_with_its_value(edgekiln, engines_recipe):
    out = edgekiln("recipe", "show", engines_recipe)[1]
    whole = load_recipe(engines_recipe).model_dump(mode="json")
    shown = tomllib.loads(out)
    for section in ("data", "backbone", "finetune", "export", "gate", "benchmark"):
        assert shown[section] == {k: v for k, v in whole[section].items() if v is not None}
    assert "# shorter_side =\n" in out
    assert out.count("# workspace_mib =\n") == len(whole["variants"])


def test_origins_are_told_of_each_value(edgekiln, engines_recipe):
    flags = (
        "--set",
        "finetune.epochs=2",
        "--set",
        "variants.int8.calibration_images=64",
        "--set",
        "gate={max_drop=0.1}",
    )
    code, out, _ = edgekiln("recipe", "show", engines_recipe, "--origin", *flags)
    assert code == 0
    lines = [line for line in out.splitlines() if " = " in line]
    assert {line.rpartition("# ")[2] for line in lines} == {"flag", "file", "default"}
    origins = json.loads(edgekiln("recipe", "show", engines_recipe, "--origin", "--json", *flags)[1])[
        "origins"
    ]
    assert origins["finetune.epochs"] == "flag"  # although it is what the file says too
    assert origins["finetune.batch_size"] == "file"
    assert origins["finetune.augmentation.hue"] == "default"
    assert origins["variants.int8.calibration_images"] == "flag"
    assert origins["variants.int8.precision"] == "file"
    assert origins["variants.fp32.calibration_images"] == "default"
    assert origins["variants.rtx-fp16.build.batch"] == "file"
    assert origins["variants.rtx-fp16.build.tf32"] == "default"
    assert (origins["gate.max_drop"], origins["gate.confidence"]) == ("flag", "default")
    assert len(lines) == len(origins)


def test_texts_survive_whatever_they_hold(edgekiln, tmp_path):
    odd = r'"a \"b\" \\ \t \u007f \u0001 é # no comment"'
    (tmp_path / "odd.toml").write_text(TINY_RECIPE.replace('"pictures"', odd))
    shown = tomllib.loads(edgekiln("recipe", "show", tmp_path / "odd.toml")[1])
    assert shown["data"]["path"].endswith('a "b" \\ \t \x7f \x01 é # no comment')
    assert shown["data"]["path"] == str(load_recipe(tmp_path / "odd.toml").data.path)


def test_validate_answers_and_names_the_key(edgekiln, tiny_recipe):
    assert (
        edgekiln("recipe", "validate", tiny_recipe)[1]
        == f"{tiny_recipe} is valid: tiny, variants fp32, int8.\n"
    )
    document = json.loads(edgekiln("recipe", "validate", tiny_recipe, "--json")[1])
    assert (document["ok"], document["variants"]) == (True, ["fp32", "int8"])
    code, out, err = edgekiln("recipe", "validate", tiny_recipe, "--set", "finetune.epoch=2")
    assert (code, out) == (2, "")
    assert "did you mean 'epochs'?" in err


def test_schema_is_that_of_the_models(edgekiln):
    code, out, _ = edgekiln("recipe", "schema")
    assert code == 0
    assert json.loads(out) == Recipe.model_json_schema()
    assert json.loads(edgekiln("recipe", "schema", "--json")[1])["schema"] == json.loads(out)
