"""A made-up report of any size: what a big run would write, without running it."""

import base64
import io
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from edgekiln.benchmarks.judging import Reference, judge_answers
from edgekiln.benchmarks.measurement import Block, Measurement, assess, compare_speed

ENGINES = {"fp32": (1.7, 0.0), "int8": (0.6, 0.35), "rtx-int8-with-a-long-name": (0.9, 0.2)}
"""Median milliseconds, and noise on the logits, by name."""


def make_report(images: int, classes: list[str], *, processes: int = 5, blocks: int = 60) -> dict[str, Any]:
    """Engines of which one lost classes, one that was not run, and timings in which the machine throttles."""
    generator = np.random.default_rng(11)
    labels = np.arange(images) % len(classes)
    logits = generator.normal(size=(images, len(classes))).astype(np.float32)
    logits[np.arange(images), labels] += 3.5
    reference = Reference(logits, labels, [f"{classes[i]}/{n:05}.png" for n, i in enumerate(labels)], classes)
    timed = _time({"baseline": 2.3, **{name: ms for name, (ms, _) in ENGINES.items()}}, processes, blocks)
    validity = assess(timed, steal=0.0, foreign_load=0.0)
    validity_dict = {
        "state": "noisy",
        "reasons": ["int8 varies by 12% between blocks"],
        "self_ratio": [0.98, 1.02],
    }
    assert validity.state != "invalid"
    limits = {"floor_ms": 0.4, "share_of_floor": 0.31, "peak_rss_mb": 210.0, "device_mb": None}
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
                "speedup": asdict(compare_speed(timed[0], measurement)),
            }
        )  # fmt: skip
    variants[1]["audit"] = {
        "share": 0.93,
        "quantized": {"Conv": 20},
        "expected": {"Conv": 21},
        "floating": ["c"],
    }
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
        "data": {
            "classes": classes, "counts": {"train": 8 * images, "val": images, "test": images},
            "unreadable": [], "duplicates": [], "conflicts": [], "ignored": [],
        },
        "parity": {},
        "baseline": {
            "name": "baseline", "precision": "fp32", "size": 17_000_000, "accuracy": accuracy,
            "latency": latencies["baseline"],
        },
        "variants": variants,
        "notices": ["int8: a notice that matters."],
        "benchmark": {
            "measurements": [m.to_dict() | limits for m in timed], "sides": [], "side_ratios": {}, "ratios": {},
            "cold_start": {m.name: {"load_ms": 210.0, "first_result_ms": 4.0} for m in timed},
            "repeated_image": {m.name: 0.99 for m in timed}, "validity": validity_dict, "machine": _MACHINE,
            "ceilings": [], "limits_problems": [],
        },
        "machine": _MACHINE,
        "parents": {},
    }  # fmt: skip


_CONTRACT = {"height": 224, "width": 224, "resize": "letterbox", "interpolation": "bilinear"}
_MACHINE = {"cpu": "A processor of some make, at 3.1 GHz", "cores": 8, "versions": {"numpy": "2.4"}}


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
