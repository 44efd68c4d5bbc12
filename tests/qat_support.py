"""Quantization-aware training of the networks of ``hostile``, which takes seconds."""

import numpy as np
from hostile import CLASSES, SIZE, colored_frames, make_hostile, make_outlier

from edgekiln.pipeline.data import PreparedSplit
from edgekiln.pipeline.recipe import BackboneSettings, FinetuneSettings, QatSettings
from edgekiln.pipeline.training.checkpoint import save_checkpoint
from edgekiln.pipeline.training.job import FinetuneJob
from edgekiln.pipeline.training.qat import QatJob
from edgekiln.runtime.contract import Contract

CONTRACT = Contract(height=SIZE, width=SIZE, classes=CLASSES)
NETWORKS = {"hostile": make_hostile, "outlier": make_outlier}


def colored_split(count, seed):
    frames, labels = colored_frames(count, seed)
    keys = tuple(map(str, range(count)))
    return PreparedSplit(frames, labels.astype(np.int64), keys, ("",) * count)


def make_job(folder, network="hostile", method="max", advance=None, **settings):
    """A job whose fine-tuning is the network as it was made; ``settings`` are of QAT, or of fine-tuning."""
    backbone = BackboneSettings(model=f"hostile:make_{network}", weights="none")
    checkpoint = folder / f"{network}.safetensors"
    save_checkpoint(NETWORKS[network](len(CLASSES)).state_dict(), CONTRACT, backbone.model, checkpoint)
    own = {key: settings.pop(key) for key in ("epochs", "learning_rate") if key in settings}
    finetune = FinetuneJob(
        backbone=backbone,
        settings=FinetuneSettings(**{"batch_size": 16, "threads": 1, **settings}),
        contract=CONTRACT,
        train=colored_split(96, 1),
        val=colored_split(90, 2),
        seed=5,
        **({} if advance is None else {"advance": advance}),
    )
    return QatJob(finetune, checkpoint, QatSettings(**own), finetune.train.frames[:64], method)
