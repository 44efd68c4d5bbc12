"""A transfer study that takes seconds: a tiny network with weights of an earlier run, and a source task beside it."""

import shutil

from tests_support import TINY_RECIPE, write_pictures

SOURCE_TASK = """
[source_task]
alpha = 0.5
[source_task.data]
source = "imagefolder"
path = "others"
validation = 0.2
test = 0.25
"""


def write_study_recipe(folder, checkpoint, *, source_task=True):
    """``tiny.toml`` in ``folder``, whose weights are ``checkpoint``; with the pictures of both tasks."""
    write_pictures(folder / "pictures")
    for colour in (folder / "pictures").iterdir():
        shutil.copytree(colour, folder / "others" / f"other-{colour.name}")
    shutil.copy(checkpoint, folder / "earlier.safetensors")
    text = TINY_RECIPE.replace('weights = "none"', 'weights = "earlier.safetensors"\nhead = "replace"', 1)
    if source_task:
        text = text.replace("[finetune]", f"{SOURCE_TASK}[finetune]", 1)
    (folder / "tiny.toml").write_text(text)
    return folder / "tiny.toml"
