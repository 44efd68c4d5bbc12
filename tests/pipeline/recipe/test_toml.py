import pytest
import tomllib
from tests_support import ROOT

from edgekiln.pipeline.proof.public_recipe import public_recipe
from edgekiln.pipeline.recipe.recipe import Recipe, load_recipe
from edgekiln.pipeline.recipe.toml import write_toml

AWKWARD = {
    "name": 'quote " backslash \\ line\nend \x7f 犬',
    "none": None,
    "numbers": [1, 2.5, 1e-07, -3],
    "section": {"yes": True, "a key": "x", "none": None, "inner": {"min": 1, "list": ["a"]}},
    "tables": [{"a": 1, "build": {"batch": {"min": 1}}}, {"a": 2}],
    "empty": [],
}


def test_what_is_written_reads_back():
    section = {key: value for key, value in AWKWARD["section"].items() if value is not None}
    expected = {k: v for k, v in AWKWARD.items() if v is not None} | {"section": section}
    assert tomllib.loads(write_toml(AWKWARD)) == expected


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_ready_recipe_survives_the_way_through_a_report(path):
    recipe = load_recipe(path, ["finetune.epochs=2"])
    text = write_toml(public_recipe(recipe, as_given=True))
    again = Recipe.model_validate(tomllib.loads(text))
    assert public_recipe(again) == public_recipe(recipe)
