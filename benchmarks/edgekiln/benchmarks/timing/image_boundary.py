"""``python -m edgekiln.benchmarks.timing.image_boundary BUNDLE``: JPEG of 1080p to class, next to Pillow and PyTorch.

Contenders, all on one CPU thread and on the same bytes: ``fast`` is ``Classifier.predict`` with scaled decoding,
``plain`` the same without, ``pillow+pytorch`` decodes and resizes with Pillow and runs the eager network. They take
turns picture by picture, so that a machine that becomes slower does so for all. Goal: ``fast`` at least 2.5 times as
fast as ``pillow+pytorch``. Fast decoding is switched on for the measurement whether or not the bundle allows it; what
the bundle records, and how many of the answers agree, is told beside the times.

Pictures: scikit-learn's two photographs, cropped to different 1080p JPEGs of quality 90, or with ``--images`` those of
a folder, enlarged where they are smaller. The network is a ``module:callable`` that takes the number of classes, or
EfficientNet-Lite0 as timm builds it, with random weights: the time does not depend on them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load
from edgekiln.benchmarks.timing.entry import run_entry
from edgekiln.runtime.bundles.bundle import open_bundle
from edgekiln.runtime.contract import Contract
from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.extras import import_extra
from edgekiln.runtime.serving.classifier import Classifier
from edgekiln.runtime.serving.loading import load

__all__ = ["GOAL", "main", "make_pictures", "measure_image_boundary"]

GOAL = 2.5
"""Speed of ``fast`` over that of ``pillow+pytorch``."""
_WIDTH, _HEIGHT, _QUALITY = 1920, 1080, 90
_PICTURES, _ROUNDS, _WARM_UP = 16, 12, 3

Predict = Callable[[bytes], int]


def measure_image_boundary(
    bundle: Path, pictures: Sequence[bytes], network: Callable[[int], Any], *, rounds: int = _ROUNDS
) -> dict[str, Any]:
    """Time all contenders; JSON values, units in the keys.

    Args:
        bundle: its preferred engine for the CPU is taken.
        pictures: JPEGs.
        network: makes the PyTorch model for that many classes: float (N, 3, H, W) to logits.
        rounds: how often every contender sees every picture.
    """
    record = open_bundle(bundle)
    with (
        load(bundle, device="cpu", threads=1, fast_decode=False) as plain,
        load(bundle, device="cpu", threads=1, fast_decode=False) as fast,
    ):
        with fast.hold() as model:
            model.fast_decode = True
        contenders: dict[str, Predict] = {
            "fast": _by_classifier(fast),
            "plain": _by_classifier(plain),
            "pillow+pytorch": _by_pytorch(network, plain.contract),
        }
        times, answers = _take_turns(contenders, pictures, rounds)
        variant = plain.variant.name
    per_picture = {name: np.median(values, axis=0) for name, values in times.items()}
    reference = per_picture["pillow+pytorch"]
    ratios = {name: float(np.median(reference / own)) for name, own in per_picture.items()}
    return {
        "variant": variant,
        "fast_decode_recorded": record.variant(variant).fast_decode.reason,
        "fast_agrees_with_plain": f"{sum(a == b for a, b in zip(answers['fast'], answers['plain'], strict=True))}"
        f" of {len(pictures)}",
        "median_ms": {name: round(float(np.median(own)) / 1e6, 3) for name, own in per_picture.items()},
        "speed_over_pillow_pytorch": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "goal": f"fast at least {GOAL}",
        "reached": ratios["fast"] >= GOAL,
        "decoder": "simplejpeg" if importlib.util.find_spec("simplejpeg") else "Pillow",
        "pictures": len(pictures),
        "rounds": rounds,
        "foreign_load_cores": round(measure_foreign_load(), 2),
        "machine": describe_machine()["cpu"],
    }


def _by_classifier(classifier: Classifier) -> Predict:
    return lambda data: classifier.predict(data).index


def _by_pytorch(network: Callable[[int], Any], contract: Contract) -> Predict:
    """As one writes it without a deployment library: Pillow, a tensor, the eager network on one thread."""
    torch = import_extra("torch", "build")
    from PIL import Image

    from edgekiln.runtime.pictures.fitting import fit

    torch.set_num_threads(1)
    model = network(len(contract.classes)).eval()
    mean = torch.tensor(contract.normalization.mean).view(1, 3, 1, 1)
    std = torch.tensor(contract.normalization.std).view(1, 3, 1, 1)

    def predict(data: bytes) -> int:
        with torch.inference_mode():
            frame = np.asarray(fit(Image.open(io.BytesIO(data)).convert("RGB"), contract))
            pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
            return int(model((pixels - mean) / std).argmax())

    return predict


def _take_turns(
    contenders: dict[str, Predict], pictures: Sequence[bytes], rounds: int
) -> tuple[dict[str, list[list[int]]], dict[str, list[int]]]:
    """Nanoseconds by contender, round and picture; and the answers, which each round must repeat."""
    answers = {name: [predict(data) for data in pictures] for name, predict in contenders.items()}
    times: dict[str, list[list[int]]] = {name: [] for name in contenders}
    for turn in range(rounds + _WARM_UP):
        row: dict[str, list[int]] = {name: [] for name in contenders}
        for data in pictures:
            for name, predict in contenders.items():
                start = perf_counter_ns()
                predict(data)
                row[name].append(perf_counter_ns() - start)
        if turn >= _WARM_UP:
            for name, values in row.items():
                times[name].append(values)
    return times, answers


def make_pictures(folder: Path | None = None, count: int = _PICTURES) -> list[bytes]:
    """JPEGs of 1920 x 1080, each another one, of photographs.

    Raises:
        UsageError: the folder has no JPEG.
        MissingExtraError: no folder was given, and scikit-learn is not installed.
    """
    from PIL import Image

    if folder is not None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})[:count]
        if not paths:
            raise UsageError(f"{folder} has no JPEG.", hint="Give a folder of photographs.", path=folder)
        sources = [Image.open(path).convert("RGB") for path in paths]
    else:
        datasets = import_extra("sklearn.datasets", "digits")
        sources = [Image.fromarray(pixels) for pixels in datasets.load_sample_images().images]
    generator = np.random.default_rng(0)
    return [_make_jpeg(sources[i % len(sources)], generator) for i in range(count)]


def _make_jpeg(source: Any, generator: np.random.Generator) -> bytes:
    """A crop of 16:9, two thirds of the source or more, enlarged."""
    from PIL import Image

    width = min(source.width, source.height * 16 / 9) * generator.uniform(0.67, 1.0)
    height = width * 9 / 16
    left = generator.uniform(0, source.width - width)
    top = generator.uniform(0, source.height - height)
    box = (left, top, left + width, top + height)
    picture = source.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS, box=box)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _lite0(classes: int) -> Any:
    """EfficientNet-Lite0 as timm builds it, with random weights."""
    timm = import_extra("timm", "build")
    return timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=classes)


def _import_network(reference: str) -> Callable[[int], Any]:
    module, _, name = reference.partition(":")
    made: Callable[[int], Any] = getattr(importlib.import_module(module), name)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print JSON; 3 where the goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m edgekiln.benchmarks.timing.image_boundary")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=Path, help="folder of JPEGs instead of scikit-learn's photographs")
    parser.add_argument(
        "--network", help="module:callable that makes the PyTorch model for a number of classes"
    )
    parser.add_argument("--pictures", type=int, default=_PICTURES)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    wish = parser.parse_args(arguments)
    network = _import_network(wish.network) if wish.network else _lite0
    pictures = make_pictures(wish.images, wish.pictures)
    values = measure_image_boundary(wish.bundle, pictures, network, rounds=wish.rounds)
    print(json.dumps(values, indent=1))
    return 0 if values["reached"] else 3


if __name__ == "__main__":
    run_entry(main)
