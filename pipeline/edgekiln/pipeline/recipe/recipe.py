"""The recipe: the user's whole wish, one TOML file, validated before anything is touched.

Unknown keys are errors that name the nearest right one. Its parts stand in the modules beside this one; a key of theirs
knows nothing of how a stage works: ``pipeline/stages/settings.py`` says which stage
depends on which part.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from edgekiln.pipeline.recipe.data import BackboneSettings, DataSettings, names_file
from edgekiln.pipeline.recipe.judging import BenchmarkSettings, GateSettings, ReportSettings, ShipSettings
from edgekiln.pipeline.recipe.own_code import seek_beside
from edgekiln.pipeline.recipe.section import Name, Section
from edgekiln.pipeline.recipe.training import (
    FinetuneSettings,
    SourceTaskSettings,
    TeacherSettings,
)
from edgekiln.pipeline.recipe.variants import (
    BATCH_TAGS,
    ExportSettings,
    VariantSettings,
)
from edgekiln.runtime.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Recipe", "load_recipe", "read_values"]


class Recipe(Section):
    """The user's whole wish."""

    name: Name = Field(description="of the folder below runs/ and of the bundle")
    seed: int = Field(
        0, ge=0, lt=2**32, description="of the split, the training and the choice of calibration pictures"
    )
    data: DataSettings
    backbone: BackboneSettings
    finetune: FinetuneSettings = FinetuneSettings()
    source_task: SourceTaskSettings | None = None
    teacher: TeacherSettings | None = None
    export: ExportSettings = ExportSettings()
    variants: tuple[VariantSettings, ...] = Field(min_length=1)
    gate: GateSettings = GateSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    report: ReportSettings = ReportSettings()
    ship: ShipSettings = ShipSettings()
    _folder: Path | None = PrivateAttr(None)  # no wish, and no part of any key
    _notices: tuple[str, ...] = PrivateAttr(())

    @property
    def folder(self) -> Path | None:
        """Where the file lies that the recipe was read from; ``None`` for one that was made otherwise."""
        return self._folder

    @property
    def notices(self) -> tuple[str, ...]:
        """What was noticed when the recipe was read, in sentences for people."""
        return self._notices

    @field_validator("variants")
    @classmethod
    def _distinct(cls, variants: tuple[VariantSettings, ...]) -> tuple[VariantSettings, ...]:
        names = [v.name for v in variants]
        if len(set(names)) != len(names):
            raise ValueError(f"variant names must differ, got {', '.join(names)}")
        files = [file for v in variants for file in v.files]
        if repeated := sorted({file for file in files if files.count(file) > 1}):
            raise ValueError(f"two variants would write {repeated[0]}: name one of them otherwise")
        if taken := sorted(name for name in names if name == "baseline" or name.startswith("pytorch-")):
            raise ValueError(f"{taken[0]!r} is the PyTorch model's own name")
        return variants

    @model_validator(mode="after")
    def _val_may_judge(self) -> Recipe:
        if not self.gate.judges_val:
            return self
        for variant in self.variants:
            if variant.chosen_on_val is not None:
                raise ValueError(
                    f"gate.evidence = 'test+val' cannot judge variants.{variant.name}, since val chose "
                    f"{variant.chosen_on_val}, or gate.evidence = 'test'"
                )
        if self.data.leaks == "allow":
            raise ValueError(
                "gate.evidence = 'test+val' and data.leaks = 'allow' exclude each other: a picture that stands in both "
                "splits would count twice"
            )
        return self

    @model_validator(mode="after")
    def _transfer_makes_sense(self) -> Recipe:
        if self.finetune.l2_sp and (self.backbone.weights == "none" or self.backbone.freeze == "backbone"):
            raise ValueError(
                "finetune.l2_sp pulls towards pretrained weights that are trained on; there are none"
            )
        if self.finetune.gradual_unfreezing and self.backbone.freeze == "backbone":
            raise ValueError(
                "finetune.gradual_unfreezing has nothing to unfreeze: backbone.freeze = 'backbone'"
            )
        if self.finetune.learning_rate == "find":
            for variant in self.variants:
                if variant.qat is not None and variant.qat.learning_rate is None:
                    raise ValueError(
                        f"variants.{variant.name}.qat.learning_rate has no default where the finetune's is 'find'"
                    )
        if self.finetune.layer_decay < 1 and self.backbone.freeze == "backbone":
            raise ValueError("finetune.layer_decay needs more than one stage: backbone.freeze = 'backbone'")
        if self.teacher is not None and self.source_task is not None and self.source_task.beta == 0:
            raise ValueError("the teacher teaches the target task, whose weight source_task.beta is 0")
        if self.source_task is not None and self.source_task.head == "keep" and not self.backbone.from_file:
            raise ValueError("source_task.head = 'keep' needs a checkpoint in backbone.weights")
        return self


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read and validate a recipe file.

    Args:
        path: TOML file. A relative ``data.path`` or weight file is taken from its folder, and ``module:callable`` is
            sought there at last.
        overrides: ``section.key=value``, the value in TOML (a bare word is a string).

    Raises:
        RecipeError: names the key, what was got, and the nearest right key.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe {path}.", hint=_suggest_recipe(path), path=path) from error
    except IsADirectoryError as error:
        inside = ", ".join(sorted(entry.name for entry in path.glob("*.toml"))[:5])
        hint = f"It holds {inside}: name one of them." if inside else _suggest_recipe(path)
        raise RecipeError(
            f"The recipe {path} is a folder, wanted a TOML file.", hint=hint, path=path
        ) from error
    except UnicodeDecodeError as error:
        text = f"The recipe {path} cannot be read: it is no text in UTF-8 ({error.reason} at byte {error.start})."
        raise RecipeError(text, hint="Save it as UTF-8.", path=path) from error
    except OSError as error:
        hint = "Check the path and its permissions."
        raise RecipeError(
            f"The recipe {path} cannot be read: {error.strerror}.", hint=hint, path=path
        ) from error
    except tomllib.TOMLDecodeError as error:
        hint = "Texts stand in quotes, sections in [brackets]: https://toml.io"
        raise RecipeError(f"{path} is not valid TOML: {error}.", hint=hint, path=path) from error
    for override in overrides:
        _apply_override(values, override)
    _resolve_paths(values, path.parent)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        message, hint = _explain(error, values)
        raise RecipeError(f"{path}: {message}", hint=hint, path=path) from error
    recipe._folder = path.resolve().parent
    sections = [recipe.data, *([recipe.source_task.data] if recipe.source_task else [])]
    names = [recipe.backbone.model, *(data.source for data in sections)]
    recipe._notices = seek_beside(recipe._folder, names)
    return recipe


def _suggest_recipe(path: Path) -> str:
    """The nearest TOML file in the folder where one was looked for."""
    beside = sorted(entry.stem for entry in path.parent.glob("*.toml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.stem, beside, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {path.parent / near[0]}.toml?"
    return "A recipe is a TOML file; the folder recipes/ of the project holds ready ones."


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(
            f"--set {override}: wanted section.key=value.", hint="Example: --set finetune.epochs=2"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    target: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        target = _descend(target, parent, override)
    if isinstance(target, list):
        if parents[-1] != "variants":
            raise RecipeError(f"--set {override}: it goes into a list.", hint="Set the list as a whole.")
        raise RecipeError(
            f"--set {override}: wanted the name of a variant.",
            hint=f"Example: --set variants.int8.{last}=...",
        )
    target[last] = value


def _descend(target: Any, parent: str, override: str) -> Any:
    """One step down; in the list of variants a step is a variant's name."""
    if isinstance(target, list):
        for item in target:
            if isinstance(item, dict) and item.get("name") == parent:
                return item
        names = [str(item["name"]) for item in target if isinstance(item, dict) and "name" in item]
        if not names:
            raise RecipeError(f"--set {override}: it goes into a list.", hint="Set the list as a whole.")
        raise RecipeError(
            f"--set {override}: there is no variant {parent!r}.", hint=f"The recipe has: {', '.join(names)}."
        )
    child = target.setdefault(parent, {})
    if not isinstance(child, dict | list):
        raise RecipeError(
            f"--set {override}: {parent!r} is a value, not a section.",
            hint=f"Set it as a whole, with nothing behind {parent}.",
        )
    return child


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    source, backbone = values.get("source_task"), values.get("backbone")
    for data in (values.get("data"), source.get("data") if isinstance(source, dict) else None):
        if isinstance(data, dict) and isinstance(data.get("path"), str):
            data["path"] = _resolve_path(data["path"], folder)
    teacher = values.get("teacher")
    if isinstance(teacher, dict) and isinstance(teacher.get("checkpoint"), str):
        teacher["checkpoint"] = _resolve_path(teacher["checkpoint"], folder)
    if isinstance(backbone, dict) and names_file(str(backbone.get("weights", ""))):
        backbone["weights"] = _resolve_path(backbone["weights"], folder)


def _resolve_path(text: str, folder: Path) -> str:
    try:
        return str(folder / Path(text).expanduser())
    except RuntimeError as error:  # no HOME, and a user whom the system does not know
        raise RecipeError(
            f"The path {text!r} begins in a home folder, and there is none by that name.",
            hint="Write the whole path, or set HOME.",
        ) from error


def _explain(error: ValidationError, values: Mapping[str, Any]) -> tuple[str, str]:
    """The first problem in one sentence with a count of the others, and what to do about it."""
    # A misspelt key also leaves the right one missing: tell of the cause, not of the consequence.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    place = [part for part in first["loc"] if part not in BATCH_TAGS]
    where = _name_place(place, values)
    more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _keys_beside(place)
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        advice = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}."
        return f"unknown key {where!r}; {advice}{more}", "Rename the key, or remove it."
    if first["type"] == "missing":
        return f"{where!r} is missing.{more}", _describe_key(place) or "Add it to the recipe."
    text = first["msg"].removeprefix("Value error, ")
    if isinstance(
        first["input"], dict | list | BaseModel
    ):  # a rule over a whole section: its text names the keys
        return f"{where or 'the recipe'}: {text}.{more}", "Change one of the keys that it names."
    hint = _describe_key(place) or "Change it in the recipe, or with --set KEY=VALUE."
    return f"{where or 'the recipe'} = {first['input']!r}: {text}.{more}", hint


def _name_place(location: Sequence[int | str], values: Mapping[str, Any]) -> str:
    """``variants.int8.precision``, as ``--set`` takes it, of ``("variants", 1, "precision")``."""
    parts: list[str] = []
    here: Any = values
    for part in location:
        try:
            here = here[part]
        except (LookupError, TypeError):
            here = None
        named = isinstance(part, int) and isinstance(here, dict) and isinstance(here.get("name"), str)
        parts.append(here["name"] if named else str(part))
    return ".".join(parts)


def _describe_key(location: Sequence[int | str]) -> str | None:
    """What a key means and its default, as the recipe's models say; ``None`` where they say nothing."""
    try:
        field = _model_at(location[:-1]).model_fields[str(location[-1])]
    except (LookupError, AttributeError):
        return None
    told = [f"{location[-1]}: {field.description}."] if field.description else []
    if not field.is_required() and not isinstance(field.default, BaseModel):
        told.append(f"Left out, it is {field.default!r}.")
    return " ".join(told) or None


def _keys_beside(location: Sequence[int | str]) -> list[str]:
    """The keys that are allowed where an unknown one stood."""
    return list(_model_at(location[:-1]).model_fields)


def _model_at(location: Sequence[int | str]) -> Any:
    """The model of a section, by its place in the recipe."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments: Mapping[str, Any] = {str(i): a for i, a in enumerate(getattr(annotation, "__args__", ()))}
        model = next(iter(arguments.values()), annotation)
    return model


def read_values(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What a recipe that ``load_recipe`` accepts says itself: the file's values with the overrides, no default."""
    values = tomllib.loads(path.read_text("utf-8-sig"))
    for override in overrides:
        _apply_override(values, override)
    return values
