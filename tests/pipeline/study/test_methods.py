"""What each method of a study changes in a recipe, and which recipes there is nothing to study in."""

import pytest
from tests_support import TINY_RECIPE

from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.study.cells import make_plan
from edgekiln.pipeline.study.methods import METHODS, choose_methods, derive_recipe, tell_departures
from edgekiln.runtime.errors import RecipeError, UsageError

PRETRAINED = TINY_RECIPE.replace('"edgekiln/tiny-cnn"', '"timm/resnet18"', 1).replace(
    '"none"', '"imagenet"', 1
)
SOURCE_TASK = '\n[source_task]\nalpha = 0.5\n[source_task.data]\nsource = "digits"\n'


@pytest.fixture
def recipe(tmp_path):
    def load(*overrides, text=PRETRAINED + SOURCE_TASK):
        (tmp_path / "recipe.toml").write_text(text)
        return load_recipe(tmp_path / "recipe.toml", overrides)

    return load


def unlike(derived, recipe):
    """Keys of the training whose values a method changed."""
    changed = set()
    for section in ("backbone", "finetune"):
        ours, theirs = (getattr(r, section).model_dump() for r in (derived, recipe))
        changed |= {f"{section}.{key}" for key in ours if ours[key] != theirs[key]}
    return changed | ({"source_task"} if derived.source_task != recipe.source_task else set())


def test_methods_change_what_they_say_and_nothing_else(recipe):
    ours = recipe("finetune.l2_sp=0.01", "backbone.freeze=until:layer3")
    assert unlike(derive_recipe(ours, "scratch"), ours) == {
        "backbone.weights", "backbone.freeze", "backbone.freeze_batchnorm", "finetune.probe", "finetune.l2_sp",
        "source_task",
    }  # fmt: skip
    assert unlike(derive_recipe(ours, "probe"), ours) == {"finetune.epochs", "source_task"}
    assert unlike(derive_recipe(ours, "full"), ours) == {"source_task"}
    assert unlike(derive_recipe(ours, "combined"), ours) == set()


def test_a_fresh_network_can_learn(recipe):
    backbone = derive_recipe(recipe("backbone.freeze=backbone"), "scratch").backbone
    assert (backbone.weights, backbone.freeze, backbone.freeze_batchnorm) == ("none", "none", False)


def test_a_derived_recipe_is_one_that_could_have_been_written(recipe):
    """``model_copy`` checks nothing; the rules over whole sections must hold all the same."""
    for text in (
        PRETRAINED + SOURCE_TASK,
        PRETRAINED.replace('"imagenet"', '"earlier.pth"\nhead = "replace"', 1),
    ):
        ours = recipe("finetune.l2_sp=0.01", text=text)
        for method in METHODS:
            derived = derive_recipe(ours, method, 0.1, 5)
            checked = type(ours).model_validate(derived.model_dump(exclude_unset=True))
            assert checked.model_dump() == derived.model_dump()


def test_a_probe_fits_a_head_of_its_own_also_where_the_file_has_one(recipe):
    ours = recipe(text=PRETRAINED.replace('"imagenet"', '"earlier.pth"', 1))
    assert ours.backbone.keeps_head
    assert not derive_recipe(ours, "probe").backbone.keeps_head
    assert derive_recipe(ours, "full").backbone.keeps_head


def test_a_share_is_of_what_the_recipe_trains_on(recipe):
    ours = recipe("data.train_share=0.2")
    assert derive_recipe(ours, "full", 0.05).data.train_share == 0.01
    assert derive_recipe(ours, "full", 1).data.train_share == 0.2


def test_other_seeds_train_otherwise_and_judge_alike(recipe):
    ours = recipe()
    first, other = derive_recipe(ours, "full", 1, ours.seed), derive_recipe(ours, "full", 1, ours.seed + 1)
    assert (first.seed, other.seed) == (3, 4)
    assert first.data == ours.data  # so that a plain run's data is found again
    assert other.data.test_seed == 3
    kept = derive_recipe(recipe("data.test_seed=9"), "full", 1, 4)
    assert kept.data.test_seed == 9


def test_without_a_source_task_the_combined_loss_is_left_out_and_that_is_said(recipe):
    for ours in (recipe(text=PRETRAINED), recipe("source_task.alpha=0")):
        methods, left_out = choose_methods(ours)
        assert methods == ("scratch", "probe", "full")
        assert left_out == [
            "combined: the recipe has no [source_task] with an alpha above 0, so the combined loss is left out."
        ]
        with pytest.raises(RecipeError, match=r"combined: the recipe has no \[source_task\].* Add one"):
            choose_methods(ours, ["full", "combined"])


def test_methods_stand_in_one_order_once(recipe):
    assert choose_methods(recipe(), ["full", "scratch", "full"]) == (("scratch", "full"), [])
    assert choose_methods(recipe())[0] == ("scratch", "probe", "full", "combined")


@pytest.mark.parametrize(
    ("overrides", "wanted", "message"),
    [
        (
            ["backbone.weights=none"],
            [],
            "the recipe transfers nothing, so there is nothing to study. Name pretr",
        ),
        (["finetune.epochs=0"], [], "scratch and full and combined would train nothing"),
        (["backbone.freeze=backbone"], [], "trains the head alone, which is no full fine-tuning"),
        (
            [],
            ["ful"],
            "There is no method 'ful'; there are: scratch, probe, full, combined. Did you mean 'full'?",
        ),
    ],
)
def test_what_cannot_be_studied_is_refused(recipe, overrides, wanted, message):
    with pytest.raises(UsageError) as caught:
        choose_methods(recipe(*overrides), wanted)
    assert message in str(caught.value)


def test_a_probe_alone_needs_no_epochs(recipe):
    assert choose_methods(recipe("finetune.epochs=0"), ["probe"])[0] == ("probe",)


def test_departures_from_the_recipe_are_told(recipe, tmp_path):
    assert tell_departures(recipe()) == []
    ours = recipe("finetune.patience=2", "backbone.freeze=until:layer3", "teacher.checkpoint=big.safetensors")
    told = " ".join(tell_departures(ours))
    for part in ("teacher is left aside", "backbone.freeze = 'until:layer3'", "finetune.patience = 2"):
        assert part in told
    assert all(derive_recipe(ours, method).teacher is None for method in METHODS)


@pytest.mark.parametrize(
    ("shares", "seeds", "message"),
    [
        ([0.0], 3, "A share of 0 cannot be trained on. Shares are above 0 and at most 1"),
        ([0.5, 1.5], 3, "A share of 1.5 cannot"),
        ([float("nan")], 3, "A share of nan cannot"),
        ([], 3, "There is no share to train on"),
        ([1.0], 0, "0 seeds from 3 upwards cannot be"),
    ],
)
def test_shares_and_seeds_that_cannot_be_are_refused(recipe, shares, seeds, message):
    with pytest.raises(UsageError, match=message):
        make_plan(recipe(), shares=shares, seeds=seeds)


def test_cells_go_seed_by_seed_from_small_to_large(recipe):
    plan, _ = make_plan(recipe(), methods=["full", "probe"], shares=[1, 0.5, 1], seeds=2)
    assert [(c.seed, c.share, c.method) for c in plan.cells] == [
        (3, 0.5, "probe"), (3, 0.5, "full"), (3, 1, "probe"), (3, 1, "full"),
        (4, 0.5, "probe"), (4, 0.5, "full"), (4, 1, "probe"), (4, 1, "full"),
    ]  # fmt: skip
