from edgekiln.pipeline.proof.products import read_products
from edgekiln.pipeline.recipe import load_recipe
from edgekiln.pipeline.workspace.stage_files import BASELINE, StageContext


def test_baseline_costs_what_the_exported_graph_costs(tiny_run):
    recipe, runs, _ = tiny_run
    inputs = {"export": next(runs.rglob("parity.json")).parent}
    inputs |= {
        f"variant.{name}": next(runs.rglob(f"variant.{name}*/**/about.json")).parent
        for name in ("fp32", "int8")
    }
    products = read_products(StageContext(load_recipe(recipe), runs, inputs, None))
    assert products[BASELINE] == products["fp32"]
    assert products["int8"][1] == "int8"
    assert products["int8"][0]["macs"] == products["fp32"][0]["macs"]
