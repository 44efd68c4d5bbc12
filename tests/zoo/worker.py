"""``python -m zoo.worker FOLDER [--without STEP]...``: one architecture, step by step; a line of JSON for each.

``FOLDER`` holds ``recipe.toml``; where that takes weights that are not there, they are trained first.

A step is a run up to a stage, as `edgekiln run --until` makes it, for one variant after the other, so that one that is
refused hides no other. The last one packs the bundle of all variants that came through, and gives its report's rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgekiln.pipeline.recipe import Recipe, load_recipe
from edgekiln.pipeline.run import RunResult, run_recipe
from edgekiln.pipeline.workspace.progress import SilentProgress
from edgekiln.runtime.errors import EdgekilnError, ExitCode
from zoo.architectures import WEIGHTS
from zoo.training import train_weights

__all__ = ["BUNDLE", "run_steps"]

BUNDLE = "bundle"
Event = dict[str, Any]


def run_steps(folder: Path, without: frozenset[str] = frozenset()) -> Iterator[Event]:
    """Events: ``begun``, then ``done`` (the last with the report's rows) or ``refused`` with the reason, by step.

    Args:
        folder: with the recipes; the runs lie in it too, and finished stages are not run again.
        without: steps to leave out: they ended the process before.
    """

    def run(wish: Recipe, until: str | None, *variants: str) -> RunResult:
        return run_recipe(wish, folder / "runs", SilentProgress(), until=until, variants=variants)

    def train() -> Event:
        data = run(recipe, "data").stages["data"].folder
        train_weights(recipe.backbone.model, recipe.data.size, data, folder / WEIGHTS)
        return {}

    recipe = load_recipe(folder / "recipe.toml")
    untrained = recipe.backbone.from_file and not (folder / WEIGHTS).exists()
    first = {"train": train} if untrained else {}
    first |= {stage: lambda stage=stage: run(recipe, stage) and {} for stage in ("finetune", "export")}
    for name, work in first.items():
        refused = yield from _step(name, work)
        if refused:
            return
    through = []
    for variant in recipe.variants:
        if variant.name in without:
            continue
        refused = yield from _step(
            variant.name, lambda name=variant.name: run(recipe, "evaluate", name) and {}
        )
        through += [] if refused else [variant]
    if through and BUNDLE not in without:
        kept = recipe.model_copy(update={"variants": tuple(through)})
        yield from _step(BUNDLE, lambda: _read_report(run(kept, None), recipe))


def _step(name: str, work: Callable[[], Event]) -> Iterator[Event]:
    """One step's events; returns whether it was refused. Anything but a typed error is a crash, with its traceback."""
    started = time.monotonic()
    yield {"step": name, "state": "begun"}
    try:
        more = work()
    except EdgekilnError as error:
        state = "crash" if error.exit_code is ExitCode.BUG else "refused"
        yield {"step": name, "state": state, "reason": str(error), "seconds": _since(started)}
        return True
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        yield {"step": name, "state": "crash", "reason": reason, "seconds": _since(started)}
        return True
    yield {"step": name, "state": "done", "seconds": _since(started), **more}
    return False


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _read_report(result: RunResult, recipe: Recipe) -> Event:
    """What the table tells, from the bundle's report."""
    assert result.report is not None
    report = result.report
    return {
        "parameters": _count_parameters(recipe),
        "top1": report["baseline"]["accuracy"]["top1"],
        "images": report["data"]["counts"]["test"],
        "parity": report["parity"]["max_difference"] / max(report["parity"]["logit_range"], 1e-12),
        "variants": {row["name"]: _describe(row) for row in report["variants"]},
    }


def _count_parameters(recipe: Recipe) -> int:
    from edgekiln.pipeline.training.backbones import build_backbone

    network = build_backbone(recipe.backbone, 10, recipe.data.size, load_weights=False).network
    return sum(parameter.numel() for parameter in network.parameters())


def _describe(row: Event) -> Event:
    simulated, audit = row.get("simulated"), row.get("audit") or {}
    agreement = row.get("agreement")
    if agreement is None and simulated:
        agreement = 1 - simulated["flips"] / simulated["images"]
    return {
        "failure": row["failure"],
        "bytes": row["size"],
        "macs": (row.get("costs") or {}).get("macs"),
        "share": audit.get("share"),
        "agreement": agreement,
        "simulated": bool(simulated),
        "lint": len((row.get("int8") or {}).get("lint", ())),
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the events of one recipe, each as it comes."""
    parser = argparse.ArgumentParser(prog="python -m zoo.worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--without", action="append", default=[])
    wish = parser.parse_args(arguments)
    for event in run_steps(wish.folder, frozenset(wish.without)):
        print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main())
