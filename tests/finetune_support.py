"""A fine-tuning job that takes seconds, on pictures whose classes anything can tell apart."""

import json

import numpy as np

from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.recipe import BackboneSettings, FinetuneSettings
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.log import LOG_NAME
from edgekiln.runtime.contract import Contract

TINY = BackboneSettings(model="edgekiln/tiny-cnn", weights="none")
CONTRACT = Contract(height=16, width=16, classes=("dark", "light"))


def split(count, seed):
    """Dark and light noise: separable, in both classes alike."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    frames = (
        generator.integers(0, 120, (count, 16, 16, 3), np.uint8)
        + (labels * 120).astype(np.uint8)[:, None, None, None]
    )
    return PreparedSplit(frames, labels.astype(np.int64), tuple(map(str, range(count))), ("",) * count)


def job(backbone=TINY, **settings):
    return FinetuneJob(
        backbone=backbone,
        settings=FinetuneSettings(**{"epochs": 2, "batch_size": 16, "threads": 1, **settings}),
        contract=CONTRACT,
        train=split(70, 0),  # 70 = 4 * 16 + 6: the tail batch counts
        val=split(20, 1),
        seed=5,
    )


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / LOG_NAME).read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]
