"""What several test files share: where the project is, a recipe that trains in seconds, and pictures for it."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from edgekiln.runtime.backends import open_session
from edgekiln.runtime.errors import BuildError, PrecisionError

ROOT = Path(__file__).parents[1]
HEED_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""First line of a child's code that is to be interrupted: where a shell put the test run into the background, children
begin with SIGINT ignored."""
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

TENSORRT_VARIANTS = """
[[variants]]
name = "rtx-fp16"
precision = "fp16"
backend = "tensorrt-rtx"
required = false
calibration_images = 48
build = {batch = [{min = 1, opt = 1, max = 1}, {min = 2, opt = 4, max = 8}]}
[[variants]]
name = "rtx-static"
precision = "fp16"
backend = "tensorrt-rtx"
required = false
calibration_images = 48
build = {static_batches = [1, 4], capabilities = [86]}
[[variants]]
name = "rtx-int8"
precision = "int8"
backend = "tensorrt-rtx"
required = false
calibration_images = 48
fallback = "fp16"
[[variants]]
name = "rtx-turing"
precision = "fp32"
backend = "tensorrt-rtx"
required = false
build = {capabilities = [75]}
[[variants]]
name = "trt-int8"
precision = "int8"
backend = "tensorrt"
required = false
calibration_images = 48
[[variants]]
name = "cuda-fp16"
precision = "fp16"
backend = "onnxruntime-cuda"
required = false
calibration_images = 48
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


def open_constant(classes: int):
    """A contender that answers zeros at once."""

    class Constant:
        def run(self, frames):
            return np.zeros((len(frames), classes), np.float32)

        def close(self) -> None:
            pass

    return Constant()


def refuse_audit(*arguments, **options):
    """An audit that finds too little; of a module, so that a child process finds it too."""
    raise PrecisionError("Only 10% run in INT8. In floating point: conv1")


def die(number):
    """End this process as a library's crash does."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(code, words):
    """End this process as a library does that gives up."""
    print(words, file=sys.stderr, flush=True)
    os._exit(code)


def say(words):
    """Print on the descriptor itself, as a library in C does."""
    os.write(1, words.encode())


def raise_build_error():
    raise BuildError("it would not", hint="Try less.", node="n", log=(("ERROR", "x"),))


def crash_in_audit(*arguments, **options):
    die(signal.SIGSEGV)


def be_killed_in_audit(*arguments, **options):
    die(signal.SIGKILL)


def open_mortal(path: str, folder: str, lives: int, threads: int):
    """A benchmark contender whose process ends while it loads, once it was loaded ``lives`` times."""
    marks = Path(folder)
    if len(list(marks.iterdir())) == lives:
        os._exit(7)
    (marks / str(os.getpid())).touch()
    return open_session("onnxruntime-cpu", Path(path).read_bytes(), threads=threads)


def open_turncoat(path: str, right: int, threads: int):
    """A benchmark contender whose answers are right for so many calls and wrong from then on."""

    class Turncoat:
        def __init__(self) -> None:
            model = Path(path).read_bytes()
            self._session, self._calls = open_session("onnxruntime-cpu", model, threads=threads), 0

        def run(self, frames):
            self._calls += 1
            return self._session.run(frames) + (100 if self._calls > right else 0)

        def close(self) -> None:
            self._session.close()

    return Turncoat()


def open_sleeper(seconds: float):
    """A benchmark contender that takes its time to load."""
    time.sleep(seconds)
    raise AssertionError("nobody ended it")
