"""A made-up report of any size: what a big run would write, without running it."""

import base64
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from inspector_support import PRODUCTS, layers_of
from PIL import Image

from edgekiln.benchmarks.comparing.comparable import Answers, Side
from edgekiln.benchmarks.comparing.fleet import Member, set_side_by_side
from edgekiln.benchmarks.judging.verdict import Reference, judge_answers
from edgekiln.benchmarks.timing.measurement import Block, Measurement, compare_speed
from edgekiln.export.audits.layers.difference import compare_engines
from edgekiln.export.audits.layers.profile import EngineProfile, LayerTiming, make_rows

ENGINES = {"fp32": (1.7, 0.0), "int8": (0.6, 0.35), "rtx-int8-with-a-long-name": (0.9, 0.2)}
"""Median milliseconds, and noise on the logits, by name."""


REASONS = {
    "valid": [],
    "noisy": ["int8 varies by 12% between blocks"],
    "invalid": ["the baseline differs from itself: 1.021 .. 1.064"],
}


def make_report(
    images: int, classes: list[str], *, processes: int = 5, blocks: int = 60, state: str = "noisy"
) -> dict[str, Any]:
    """Every section filled: an engine that lost classes, one not run, searches that ended well and badly, LoadGen.

    The machine throttles in the timings; ``state`` is what they are said to be worth.
    """
    generator = np.random.default_rng(11)
    labels = np.arange(images) % len(classes)
    logits = generator.normal(size=(images, len(classes))).astype(np.float32)
    logits[np.arange(images), labels] += 3.5
    reference = Reference(logits, labels, [f"{classes[i]}/{n:05}.png" for n, i in enumerate(labels)], classes)
    timed = _time({"baseline": 2.3, **{name: ms for name, (ms, _) in ENGINES.items()}}, processes, blocks)
    validity_dict = {"state": state, "reasons": REASONS[state], "self_ratio": [0.98, 1.02]}
    limits = {"floor_ms": 0.4, "share_of_floor": 0.31, "peak_rss_mb": 210.0, "device_mb": None, **_ENERGY}
    latencies = {m.name: {k: v for k, v in m.to_dict().items() if k != "blocks"} | limits for m in timed}
    variants = []
    for (name, (_, noise)), measurement in zip(ENGINES.items(), timed[1:], strict=True):
        answers = logits + noise * generator.normal(size=logits.shape).astype(np.float32)
        answers[:, 1] -= 3 * noise  # one class suffers
        judged = judge_answers(reference, answers, max_drop=0.05, confidence=0.95)
        for flip in judged["flips"][:24]:
            flip["thumbnail"] = _thumbnail(generator)
        variants.append(
            {
                **_row(name), **judged, "size": 4_300_000, "latency": latencies[name],
                "speedup": None if state == "invalid" else asdict(compare_speed(timed[0], measurement)),
            }
        )  # fmt: skip
    variants[1]["audit"] = {
        "share": 0.93,
        "quantized": {"Conv": 20},
        "expected": {"Conv": 21},
        "floating": ["c"],
    }
    doctor = {"warnings": [f"no calibration image of {classes[0]}"]}
    choice = {
        "kept": "percentile",
        "sentence": "percentile, since it agrees best: minmax 3, 0.02; percentile 0, 0.004",
    }
    variants[1]["calibration"] = {
        "images": 128, "method": "percentile", "choice": choice, "doctor": doctor,
    }  # fmt: skip
    variants[1]["search"], variants[2]["search"] = make_search("found"), make_search("impossible")
    variants[2]["audit"] = {
        "share": 0.8, "evidence": "inspector", "precision": "int8", "reformats": 3,
        "macs": {"int8": 800, "fp16": 150, "fp32": 40, "unknown": 10},
    }  # fmt: skip
    variants.append(
        {**_row("trt-fp16"), "required": False, "verdict": "not-run", "reason": "built, not run here: no NVIDIA GPU",
         "files": ["trt-fp16.engine"], "flips": [], "size": 9_000_000}
    )  # fmt: skip
    accuracy = judge_answers(reference, logits, max_drop=0.05, confidence=0.95)["accuracy"]
    return {
        "schema_version": "1.0", "name": "made-up", "contract": _CONTRACT, "contract_digest": "0" * 64,
        "recipe": {
            "name": "made-up", "gate": {"confidence": 0.95, "metric": "top1", "max_drop": 0.05},
            "benchmark": {"images": 64, "processes": processes, "blocks": blocks},
        },
        "training": {
            "epochs": [
                {"epoch": 0, "val_top1": 0.9, "val_loss": 0.4},
                {"epoch": 1, "val_top1": 0.93, "val_loss": 0.3, "loss": 0.6, "target_loss": 0.4, "source_loss": 0.7},
                {"epoch": 2, "val_top1": 0.92, "val_loss": 0.31, "loss": 0.5, "target_loss": 0.3, "source_loss": 0.6},
            ],
            "best_epoch": 1, "stopped": "no better epoch in 1", "source": {"before": 0.9, "after": 0.85},
        },
        "data": {
            "classes": classes, "counts": {"train": 8 * images, "val": images, "test": images},
            "unreadable": [], "duplicates": [], "conflicts": [], "ignored": [],
        },
        "parity": {},
        "baseline": {
            "name": "baseline", "precision": "fp32", "size": 17_000_000, "accuracy": accuracy,
            "latency": latencies["baseline"], "sha256": "0" * 64, "onnx_sha256": "1" * 64,
        },
        "peers": [{"name": "pytorch-tuned", "precision": "fp32", "latency": latencies["fp32"], "speedup": None}],
        "mlperf": make_mlperf(), "recipe_toml": 'name = "made-up"\n', "recipe_commit": "c" * 40,
        "variants": variants,
        "notices": ["int8: a notice that matters."],
        "benchmark": {
            "images": 64,
            "measurements": [
                *(m.to_dict() | limits for m in timed[:-1]),
                timed[-1].to_dict() | limits | {"energy": None, "energy_reason": "NVML: no permission"},
            ],
            "sides": [], "side_ratios": {}, "ratios": {},
            "cold_start": {
                m.name: {"import_ms": 150.0, "load_ms": 210.0, "first_result_ms": 4.0} for m in timed
            },
            "repeated_image": {m.name: 0.99 for m in timed}, "validity": validity_dict, "machine": _MACHINE,
            "ceilings": [], "limits_problems": [], "layers": make_layers(),
        },
        "machine": _MACHINE,
        "parents": {},
    }  # fmt: skip


def make_layers() -> dict[str, Any]:
    """What ``profile_together`` gives, of recorded layers with made-up times: an FP32 engine and one with an island."""
    profiles = []
    for name in ("v10_fp32", "v10_int8_island"):
        layers = layers_of(name)
        times = tuple(0.125 * (1 + number % 3) for number in range(len(layers)))
        timing = LayerTiming("median", 50, 1.0, 1.5, 0.001)
        rows = make_rows(layers, times, PRODUCTS)
        told = ("10.3", "A GPU of some make", None, 8, rows, "inspector", timing, ("<b>a note</b>",))
        profiles.append(EngineProfile(name, "tensorrt", *told))
    return {
        "profiles": [profile.to_dict() for profile in profiles],
        "differences": [compare_engines(*profiles).to_dict()],
        "problems": {"trt-fp16": "there is no GPU"},
    }


_CONTRACT = {"height": 224, "width": 224, "resize": "letterbox", "interpolation": "bilinear"}
_MACHINE = {
    "cpu": "A processor of some make, at 3.1 GHz", "cores": 8, "versions": {"numpy": "2.4"},
    "cpu_flags": ["avx", "avx2", "f16c", "fma"], "governor": "powersave", "cpu_mhz": {"current": 3100.0, "max": None},
    "load_1min": 0.4, "commit": "d" * 40, "jetson": {"power_mode": "MAXN"}, "gpus": [{"name": "A GPU of some make"}],
    "gpu_state": [{"sm_mhz": 1980.0, "temperature_c": 61.0, "power_w": 350.5, "driver": "580.95.05",
                   "throttled_by": ["software power cap"]}],
}  # fmt: skip
_ENERGY = {
    "energy": {"mj_per_image": 40.2, "error_mj": 7.1, "idle_watts": 5.01, "busy_watts": 9.04, "images": 301,
               "seconds": 3.0, "samples": 60, "source": "board rails VDD_IN"},
    "energy_reason": None,
}  # fmt: skip


def make_fleet(classes: list[str]) -> dict[str, Any]:
    """Devices with awkward names: valid, noisy and invalid timings, an emulated one, one without a result."""
    generator = np.random.default_rng(5)
    labels = np.arange(300) % len(classes)
    logits = generator.normal(size=(300, len(classes))).astype(np.float32)
    digests = tuple(f"{i:064x}" for i in range(300))
    sides, members = {}, []
    for name, state in {
        "here": "valid",
        "<i>pi</i> " + "5" * 50: "noisy",
        "arm\u202e": None,
        "old": "invalid",
    }.items():
        report = make_report(300, classes, processes=2, blocks=4, state=state or "valid")
        report["machine"] = {**report["machine"], "system": "Linux", "python": "3.11", "emulated_on": None}
        report["machine"] |= {
            "versions": {"onnxruntime": "1.32.0"},
            "emulated_on": None if state else "x86_64",
        }
        engines = {e: logits + 0.02 * generator.normal(size=logits.shape).astype(np.float32) for e in ENGINES}
        answers = Answers(digests, labels, {"baseline": logits, **engines})
        contract = {**report["contract"], "classes": classes}
        sides[name] = Side(Path(name), contract, {}, report, answers, "same")
        members.append(Member(name, Path(name), required=name == "here"))
    members.append(Member("lost", None, required=True, why="the line was cut & <b>never</b> came back"))
    return set_side_by_side(members, sides)


def make_search(verdict: str) -> dict[str, Any]:
    """What ``hold_budget`` stores: six sets of blocks, the fourth of which holds a budget of half a point."""
    names = [f"block {i} of a network with long names" for i in range(6)]
    drops = (
        (0.16, None, 0.031, 0.004, 0.003, 0.0) if verdict == "found" else (0.4, 0.31, 0.3, 0.22, 0.1, 0.06)
    )
    curve = [
        {"kept": names[:kept], "products": 2 * kept, "share_quantized": 1 - 0.09 * kept, "drop": drop}
        for kept, drop in enumerate(drops)
    ]
    kept = [{"name": name, "products": [f"{name}.a", f"{name}.b"]} for name in names[:3]]
    return {
        "verdict": verdict, "kept": kept if verdict == "found" else [], "curve": curve, "ranking": [], "blocks": 21,
        "chosen": curve[3] if verdict == "found" else None,
        "evaluations": 33, "fewest": True, "max_drop": 0.005, "rule": "estimate", "split": "val", "images": 237,
        "judged_by": "onnxruntime on this CPU", "reference": "the FP32 graph", "seconds_allowed": 600.0,
        "share_quantized": 0.73,
    }  # fmt: skip


def make_study() -> dict[str, Any]:
    """What a transfer study stores: four methods at three sizes, and a training that failed."""
    methods = {"scratch": 0.4, "probe": 0.88, "full": 0.9, "combined": 0.91}
    means = [
        {
            "share": share, "method": name, "mean": mean * share**0.2, "median": mean * share**0.2,
            "low": (mean - 0.05) * share**0.2, "high": (mean + 0.05) * share**0.2,
            "values": [(mean + d) * share**0.2 for d in (-0.02, 0, 0.02)], "train_images": 200 * share,
            "steps": 10, "images_seen": 100, "seconds": 1.5, "seeds": 3, "failed": 0,
        }
        for share in (0.1, 0.5, 1.0)
        for name, mean in methods.items()
    ]  # fmt: skip
    cell = {"share": 1.0, "seed": 0}
    choice = {"share": 1.0, "method": "probe", "reason": "it is cheap", "not_compared": []}
    return {
        "name": "fruit", "metric": "top1", "notices": ["a class is called <b>"], "test": {"images": 100},
        "seeds": [0, 1, 2], "margin": 0.01, "choice": choice, "choices": [choice],
        "methods": [{"name": name, "title": f"the method {name}", "about": name} for name in methods],
        "means": means,
        "differences": [
            {"share": 1.0, "first": "full", "second": "scratch", "mean": 0.5, "low": 0.41, "high": 0.59}
        ],
        "cells": [
            {**cell, "method": "probe", "state": "done", "top1": 0.9, "balanced": 0.8, "train_images": 200,
             "val_images": 20, "steps": 10, "seconds": 1.0},
            {**cell, "method": "full", "state": "failed", "error": "no memory"},
        ],
        "recipe": {"name": "fruit"}, "machine": {"cpu": "a CPU"},
    }  # fmt: skip


def make_mlperf() -> dict[str, Any]:
    """What the stage ``mlperf`` stores: a valid and an invalid run, and an engine that was not driven."""
    common = {
        "tool": "mlcommons-loadgen 6.0", "variant": "int8", "backend": "onnxruntime-cpu", "threads": 2,
        "library": 297, "min_seconds": 10.0, "shortfalls": ["10 s, MLPerf asks for 600"],
    }  # fmt: skip
    times = {"p50_ms": 0.6, "p90_ms": 0.72, "p99_ms": 0.91, "samples_per_second": 1601.25}
    single = {
        **common, "scenario": "SingleStream", "result": "VALID", "valid": True, "reasons": [], "batch": 1,
        "loadgen": {**times, "early_stopping_p90_ms": 0.73}, "ours": {**times, "calls": 16000, "samples": 16000},
        "ours_over_loadgen_p50": 0.987, "ours_over_loadgen_p90": 0.991,
    }  # fmt: skip
    offline = {
        **common, "scenario": "Offline", "result": "INVALID", "valid": False, "batch": 64,
        "reasons": ["Min duration satisfied: no"], "loadgen": {**times, "early_stopping_p90_ms": None},
        "ours": {**times, "calls": 250, "samples": 16000}, "ours_over_loadgen_samples_per_second": 1.012,
    }  # fmt: skip
    left_out = [{"name": "trt-fp16", "scenario": None, "reason": "only engines for the CPU are driven"}]
    return {"results": [single, offline], "left_out": left_out, "reason": None, "remedy": None}


def _row(name: str) -> dict[str, Any]:
    return {
        "name": name, "backend": "onnxruntime-cpu", "precision": "int8" if "int8" in name else "fp32",
        "required": True, "files": [f"{name}.onnx"], "notices": [], "simulated": None,
    }  # fmt: skip


def _time(medians: dict[str, float], processes: int, blocks: int) -> list[Measurement]:
    generator = np.random.default_rng(3)
    measurements = []
    for name, median in medians.items():
        timed = []
        for process in range(processes):
            for index in range(blocks):
                # The machine throttles from the second process on.
                slow = 1 + 0.25 * (process > 0) * min(1, index / (blocks / 2))
                for turn in (0, 1) if name == "baseline" else (0,):
                    times = median * slow * generator.lognormal(0, 0.05, max(1, int(50 / median)))
                    timed.append(Block(process, index, turn, times * (3 if generator.random() < 0.01 else 1)))
        search = [{"config": {"threads": 1}, "median_ms": median}]
        measurements.append(Measurement(name, "call", 1, {"threads": 1}, search, timed))
    return measurements


def _thumbnail(generator: np.random.Generator) -> str:
    color, noise = generator.integers(40, 210, 3), generator.integers(-20, 20, (80, 80, 3))
    buffer = io.BytesIO()
    Image.fromarray((color + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
