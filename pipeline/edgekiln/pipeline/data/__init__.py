"""Labelled pictures: sources, splits, what is kept of each picture, and what a folder looks like before a recipe is.

The door: other wings, and a recipe's own source, import from here. Knows no network.

``labelled`` says what a labelled picture is and cuts splits; ``listing`` lists a source, with ``folders`` and
``sources``; ``prepared`` makes splits ready, as ``arrays`` on disk or as ``picture_frames`` that are decoded when they
are read; ``leaks`` keeps a picture out of two splits; ``loading`` runs ahead in threads.

May import: ``runtime``, ``runtime/pictures``, ``benchmarks``, ``benchmarks/judging``, ``benchmarks/costs``,
``pipeline``, ``pipeline/recipe``, ``pipeline/workspace``.
"""

from edgekiln.pipeline.data.folders.reading import PICTURE_SUFFIXES
from edgekiln.pipeline.data.labelled import LabelledImages, Sample, SplitName, split_samples
from edgekiln.pipeline.data.listing import fingerprint_source, import_callable, read_source
from edgekiln.pipeline.data.prepared import (
    INDEX_NAME,
    PreparedSplit,
    describe_unjudged,
    hold_in_memory,
    identity_file,
    load_split,
    make_contract,
    prepare_splits,
    read_classes,
    read_observed,
)

__all__ = [
    "INDEX_NAME",
    "PICTURE_SUFFIXES",
    "LabelledImages",
    "PreparedSplit",
    "Sample",
    "SplitName",
    "describe_unjudged",
    "fingerprint_source",
    "hold_in_memory",
    "identity_file",
    "import_callable",
    "load_split",
    "make_contract",
    "prepare_splits",
    "read_classes",
    "read_observed",
    "read_source",
    "split_samples",
]
