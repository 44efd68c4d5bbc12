"""What loading costs: seconds from the start of a fresh process to the first batch, and memory at its peak.

Run as a module: ``python -m edgekiln.pipeline.data.loading_cost --files 100000 --side 256 --folder TMP``. It writes
that many JPEGs into a temporary folder below TMP, prepares and reads them under each cache in a process of its own,
prints one JSON document a line, and takes everything away again. The pictures have just been written, so they lie in
the page cache: a disk's own time comes on top.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekiln.benchmarks.costs.memory import read_peak_rss_mb
from edgekiln.benchmarks.environment import describe_machine, measure_foreign_load
from edgekiln.runtime.errors import EngineError
from edgekiln.runtime.processes import child_environment, module_command

__all__ = ["measure_loading", "write_jpegs"]

_CLASSES = 10
_SCENES = (
    50  # pictures that are encoded; the others differ from one of these by a comment, and so by their bytes
)
_BATCH = 64
_BATCHES = 20


def write_jpegs(folder: Path, count: int, side: int) -> int:
    """``folder/CLASS/NUMBER.jpg``, of ``side`` x 3/4 ``side`` pixels, no two of the same bytes; returns all bytes.

    Smooth colours with some noise, which at quality 85 take about as many bits for each pixel as photographs.
    """
    scenes = [_encode_scene(seed, side) for seed in range(min(count, _SCENES))]
    for label in range(_CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
    for number in range(count):
        path = folder / f"class{number % _CLASSES}" / f"{number:07}.jpg"
        path.write_bytes(_add_comment(scenes[number % len(scenes)], b"%09d" % number))
    return sum(len(scenes[number % len(scenes)]) + 13 for number in range(count))


def _encode_scene(seed: int, side: int) -> bytes:
    from PIL import Image

    generator = np.random.default_rng(seed)
    size = (side, max(1, side * 3 // 4))
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + generator.integers(-12, 13, smooth.shape)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _add_comment(jpeg: bytes, text: bytes) -> bytes:
    """The same pixels with a COM segment behind the start-of-image marker (ITU-T T.81, B.2.4.5)."""
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text + jpeg[2:]


def measure_loading(pictures: Path, folder: Path, *, cache: str, check: str, size: int) -> dict[str, Any]:
    """Prepare a folder of classes and read batches of its train split, in a fresh process; JSON values.

    ``listed_s``: until the source is listed and fingerprinted, as each run does before its first stage.
    ``prepared_s``: until the data stage is done. ``first_batch_s``: until the first batch is there. All three from the
    start of the process. ``images_per_s``: of batches, read in threads, while nobody trains. ``peak_rss_mb``: of the
    process, of which ``imports_rss_mb`` were there before it listed; mapped arrays that were touched are part of it.

    Raises:
        EngineError: the process failed; the last line that it said is in the message.
    """
    request = {"pictures": str(pictures), "folder": str(folder), "begun": time.monotonic()}
    request["settings"] = {"cache": cache, "check": check, "size": size}
    done = subprocess.run(
        module_command("edgekiln.pipeline.data.loading_cost", "--child"),
        env=child_environment(),
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,  # what it said goes into the message
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise EngineError(f"The process that loads pictures ended with {done.returncode}: {said[0]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure_here(request: Mapping[str, Any]) -> dict[str, Any]:
    from edgekiln.pipeline.data.listing import fingerprint_source, read_source
    from edgekiln.pipeline.data.prepared import load_split, prepare_splits
    from edgekiln.pipeline.recipe import DataSettings

    begun, imports_rss_mb = request["begun"], read_peak_rss_mb()
    settings = DataSettings.model_validate(
        # The pictures repeat a few scenes, which would be left out.
        {"source": "imagefolder", "path": request["pictures"], "leaks": "allow", **request["settings"]}
    )
    fingerprint_source(read_source(settings))
    listed = time.monotonic()
    folder = Path(request["folder"])
    prepare_splits(settings, seed=0, folder=folder)
    prepared = time.monotonic()
    train = load_split(folder, "train", in_memory=settings.cache == "memory")
    order = np.random.default_rng(0).permutation(len(train))[: _BATCH * _BATCHES]
    batches = [np.sort(chosen) for chosen in np.array_split(order, _BATCHES)]
    read = len(train.frames[batches[0]])
    first = time.monotonic()
    for chosen in batches[1:]:
        read += len(train.frames[chosen])
    rate = (read - len(batches[0])) / (time.monotonic() - first)
    return {
        "cache": settings.cache,
        "check": settings.check if settings.cache == "none" else None,
        "listed_s": round(listed - begun, 2),
        "prepared_s": round(prepared - begun, 2),
        "first_batch_s": round(first - begun, 2),
        "images_per_s": round(rate),
        "imports_rss_mb": imports_rss_mb,
        "peak_rss_mb": read_peak_rss_mb(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: print a JSON document a line, the machine and the pictures first."""
    parser = argparse.ArgumentParser(
        prog="python -m edgekiln.pipeline.data.loading_cost", description=__doc__
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=256, help="width of the JPEGs, pixels")
    parser.add_argument("--size", type=int, default=64, help="data.size, pixels")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    if wanted.child:
        print(json.dumps(_measure_here(json.load(sys.stdin))))
        return
    with tempfile.TemporaryDirectory(prefix="edgekiln-", dir=wanted.folder) as scratch:
        root = Path(scratch)
        written = write_jpegs(root / "pictures", wanted.files, wanted.side)
        machine = describe_machine()
        about = {"files": wanted.files, "side": wanted.side, "size": wanted.size, "bytes": written}
        about |= {"cpu": machine["cpu"], "cores": machine["cores"]}
        print(json.dumps(about), flush=True)
        for cache, check in (("none", "header"), ("none", "whole"), ("disk", "whole"), ("memory", "whole")):
            busy = {"foreign_load_cores": round(measure_foreign_load(), 2)}
            folder = root / f"{cache}-{check}"
            folder.mkdir()
            found = measure_loading(root / "pictures", folder, cache=cache, check=check, size=wanted.size)
            shutil.rmtree(folder)
            print(json.dumps(found | busy), flush=True)


if __name__ == "__main__":
    main()
