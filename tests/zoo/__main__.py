"""``PYTHONPATH=tests python -m zoo --out zoo.json [--only TEXT] [--jobs N] [--again WORD]``, and ``--into PAGE``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reference.markdown import replace_between_marks

from edgekiln.benchmarks.environment import describe_machine, read_commit
from zoo.architectures import ARCHITECTURES, Architecture, make_recipe
from zoo.table import render, summarize
from zoo.watching import Limits, watch_worker

__all__ = ["main", "run_zoo"]

Row = dict[str, Any]


def run_zoo(
    chosen: Sequence[Architecture], out: Path, *, jobs: int = 1, limits: Limits | None = None
) -> dict[str, Any]:
    """Run what is not in ``out`` yet; each row is written as it comes. Returns the whole document."""
    document = json.loads(out.read_text("utf-8")) if out.exists() else {"rows": {}}
    document["machine"] = _describe_machine()
    writing, stop = threading.Lock(), threading.Event()

    def take(architecture: Architecture) -> None:
        row = _run_one(architecture, limits or Limits(), stop)
        with writing:
            document["rows"][architecture.name] = row
            beside = out.with_name(f"{out.name}.part")
            beside.write_text(json.dumps(document, indent=1, sort_keys=True), "utf-8")
            beside.replace(out)
        print(f"{architecture.name}: {summarize(row)} ({row['seconds']:.0f} s)", file=sys.stderr, flush=True)

    left = [architecture for architecture in chosen if architecture.name not in document["rows"]]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(take, left))
        except BaseException:  # Ctrl-C: what is not begun is not, and what is begun is no result
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return document


def _describe_machine() -> dict[str, Any]:
    """What decides results: not the load and the clocks of the moment."""
    about = describe_machine()
    return {key: about[key] for key in ("cpu", "cores", "vnni", "python", "versions")}


def _run_one(architecture: Architecture, limits: Limits, stop: threading.Event) -> Row:
    """One architecture in a folder of its own; a step that ended its process is left out of the next one."""
    started = time.monotonic()
    steps: dict[str, Row] = {}
    peak = 0
    with tempfile.TemporaryDirectory(prefix="edgekiln-zoo-") as name:
        folder = Path(name)
        (folder / "recipe.toml").write_text(make_recipe(architecture), "utf-8")
        without: list[str] = []
        while True:
            watched = watch_worker([name], without, limits, stop)
            peak = max(peak, watched.peak_mib)
            steps |= {step: event for step, event in watched.steps.items() if event["state"] != "begun"}
            if watched.ended_in is None:
                break
            steps[watched.ended_in] = {"state": watched.how, "reason": watched.reason}
            without.append(watched.ended_in)
            if watched.ended_in in {"train", "finetune", "export", "start"}:
                break
    bundle = steps.get("bundle", {})
    known = {
        key: bundle.pop(key)
        for key in ("parameters", "top1", "images", "parity", "variants")
        if key in bundle
    }
    return {
        "weights": architecture.weights,
        "commit": read_commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "steps": steps,
        **known,
        "peak_mib": peak,
        "seconds": round(time.monotonic() - started, 1),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the zoo, or put the table of its JSON into a page; 3 where a row ended in a crash."""
    parser = argparse.ArgumentParser(prog="python -m zoo")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON; architectures that it holds are not run again"
    )
    parser.add_argument(
        "--only", action="append", help="architectures whose name holds this text; repeated: in this order"
    )
    parser.add_argument(
        "--again", action="store_true", help="run the chosen ones although the JSON holds them"
    )
    parser.add_argument("--jobs", type=int, default=1, help="architectures at a time, one thread each")
    parser.add_argument("--seconds", type=float, default=Limits().seconds, help="for one architecture")
    parser.add_argument("--mib", type=int, default=Limits().mib, help="of memory, for one architecture")
    parser.add_argument("--into", type=Path, help="put the table into this page, and run nothing")
    wish = parser.parse_args(arguments)
    if wish.into is not None:
        table = render(json.loads(wish.out.read_text("utf-8")))
        wish.into.write_text(replace_between_marks(wish.into.read_text("utf-8"), table), "utf-8")
        return 0
    chosen = [*dict.fromkeys(a for text in wish.only or [""] for a in ARCHITECTURES if text in a.name)]
    if wish.again and wish.out.exists():
        document = json.loads(wish.out.read_text("utf-8"))
        for architecture in chosen:
            document["rows"].pop(architecture.name, None)
        wish.out.write_text(json.dumps(document, indent=1, sort_keys=True), "utf-8")
    document = run_zoo(chosen, wish.out, jobs=wish.jobs, limits=Limits(wish.seconds, wish.mib))
    print(render(document))
    return 3 if any(summarize(row).startswith("crash") for row in document["rows"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
