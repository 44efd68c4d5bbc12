"""The recipe: the user's whole wish, one TOML file, as frozen sections of pydantic; how it is read, shown and written.

The door: other wings import from here. Knows no stage and nothing of how a key is used.

Where a section stands: ``data`` and ``backbone`` in ``data.py``; ``finetune``, ``source_task`` and ``teacher`` in
``training.py``; ``variants`` with ``build`` and ``qat``, and ``export``, in ``variants.py``; ``gate``, ``benchmark``,
``report`` and ``ship`` in ``judging.py``.

May import: ``runtime``, ``runtime/backends``, ``runtime/bundles``.
"""

from edgekiln.pipeline.recipe.data import BackboneSettings, DataSettings
from edgekiln.pipeline.recipe.judging import BenchmarkSettings, GateSettings, ReportSettings, ShipSettings
from edgekiln.pipeline.recipe.recipe import Recipe, load_recipe, read_values
from edgekiln.pipeline.recipe.training import (
    Augmentation,
    FinetuneSettings,
    SourceTaskSettings,
    TeacherSettings,
)
from edgekiln.pipeline.recipe.variants import (
    BatchSettings,
    BuildSettings,
    ExportSettings,
    QatSettings,
    VariantSettings,
)

__all__ = [
    "Augmentation",
    "BackboneSettings",
    "BatchSettings",
    "BenchmarkSettings",
    "BuildSettings",
    "DataSettings",
    "ExportSettings",
    "FinetuneSettings",
    "GateSettings",
    "QatSettings",
    "Recipe",
    "ReportSettings",
    "ShipSettings",
    "SourceTaskSettings",
    "TeacherSettings",
    "VariantSettings",
    "load_recipe",
    "read_values",
]
