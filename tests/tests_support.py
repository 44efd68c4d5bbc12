"""What several test files share: where the project is, a recipe that trains in seconds, and pictures for it."""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 50, 40)}

TINY_RECIPE = """
name = "tiny"
seed = 3
[data]
source = "imagefolder"
path = "pictures"
size = 32
validation = 0.2
test = 0.25
[backbone]
model = "edgekiln/tiny-cnn"
weights = "none"
[finetune]
epochs = 2
batch_size = 16
learning_rate = 1e-3
threads = 1
[[variants]]
name = "fp32"
precision = "fp32"
[[variants]]
name = "int8"
precision = "int8"
calibration_images = 48
[gate]
max_drop = 0.2
[benchmark]
enabled = false
"""


def write_pictures(folder: Path, per_class: int = 40, size: int = 28) -> Path:
    """Noisy pictures whose class is their colour: learnable by anything, and no two alike."""
    generator = np.random.default_rng(7)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            noise = generator.integers(-40, 41, (size, size + i % 5, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")
    return folder
