import pytest
from tests_support import ROOT, TINY_RECIPE

from edgekiln.pipeline.recipe.recipe import load_recipe
from edgekiln.runtime.errors import ExitCode, RecipeError
from edgekiln.runtime.spec import Precision


def write(tmp_path, text):
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", "unknown key 'finetune.epoch'; did you mean 'epochs'?"),
        ("[gate]", "[gates]", "unknown key 'gates'; did you mean 'gate'?"),
        ("precision = \"int8\"", "preecision = \"int8\"", "did you mean 'precision'?"),
        ("seed = 3", "sede = 3", "did you mean 'seed'?"),
        ("epochs = 2", "epochs = 2\nzzz = 1", "known keys: accumulate, augmentation, batch_size"),
        ("epochs = 2", "epochs = -2", "finetune.epochs = -2"),
        ("epochs = 2", 'epochs = "many"', "finetune.epochs = 'many'"),
        ("name = \"int8\"", "name = \"fp32\"", "variant names must differ"),
        ("name = \"tiny\"", "name = \"../tiny\"", "name = '../tiny'"),
        ("name = \"tiny\"", "", "'name' is missing"),
        ("name = \"int8\"", "name = \"baseline\"", "'baseline' is the PyTorch model's own name"),
        ("name = \"int8\"", f"name = \"{'v' * 60}\"", "pattern"),
        ("weights = \"none\"", "weights = \"imagnet\"", "known: imagenet, none"),
        ("weights = \"none\"", "weights = \"package:x\"", "are for timm models, not for edgekiln/tiny-cnn"),
        ("precision = \"int8\"", "precision = \"int4\"", "precision = 'int4'"),
        ("precision = \"int8\"", "precision = \"fp16\"", "onnxruntime-cpu has no fp16 variant"),
        ("max_drop = 0.2", 'metric = "f1"', "gate.metric = 'f1'"),
        ("calibration_images = 48", "calibration_images = 3", "greater than or equal to 32"),
    ],
)  # fmt: skip
def test_mistakes_name_the_key_and_what_is_right(tmp_path, old, new, message):
    assert old in TINY_RECIPE
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, TINY_RECIPE.replace(old, new, 1)))
    assert message in str(caught.value)
    assert "r.toml" in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


def test_overrides_reach_sections_and_variants(tmp_path):
    recipe = load_recipe(
        write(tmp_path, TINY_RECIPE),
        ["finetune.epochs=7", "data.interpolation=bicubic", "variants.int8.required=false",
         "finetune.augmentation.hue=0.1"],
    )  # fmt: skip
    assert recipe.finetune.epochs == 7
    assert recipe.data.interpolation == "bicubic"
    assert [v.required for v in recipe.variants] == [True, False]
    assert recipe.finetune.augmentation.hue == 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.epochs", "wanted section.key=value"),
        ("finetune.epoch=2", "did you mean 'epochs'?"),
        ("variants.int9.required=false", "there is no variant 'int9'"),
        ("name.x=1", "'name' is a value, not a section"),
        ("variants=1", "variants"),
    ],
)
def test_wrong_overrides_are_explained(tmp_path, override, message):
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        load_recipe(write(tmp_path, TINY_RECIPE), [override])


def test_broken_files_are_explained(tmp_path):
    with pytest.raises(RecipeError, match="There is no recipe"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="is not valid TOML"):
        load_recipe(write(tmp_path, "name = "))
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "r.toml")


def test_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf" + TINY_RECIPE.encode())
    assert load_recipe(tmp_path / "r.toml").name == "tiny"


def test_paths_are_taken_from_the_recipes_folder(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY_RECIPE), ["backbone.weights=w.pth"])
    assert recipe.data.path == tmp_path / "pictures"
    assert recipe.backbone.weights == str(tmp_path / "w.pth")


def test_precision_is_the_runtimes_own_enum(tmp_path):
    recipe = load_recipe(write(tmp_path, TINY_RECIPE))
    assert [v.precision for v in recipe.variants] == [Precision.FP32, Precision.INT8]
