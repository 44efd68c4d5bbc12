"""``PYTHONPATH=tests python -m fuzz BUNDLE --kind onnx --count 2000 --seed 0 [--keep FOLDER]``: ends, as JSON.

Exits 3 where an end was not ``ok`` or typed: an exception of another kind, a crash, or a file that took over 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz.targets import TARGETS

__all__ = ["fuzz", "main"]

_TESTS = str(Path(__file__).parents[1])
PATIENCE_S = 30.0
"""For one file; the first of a child also waits for its imports."""
_EXAMPLES = 20


class _Child:
    """A process that uses files one by one, started again where it has died."""

    def __init__(self, kind: str, bundle: Path) -> None:
        self._command = [sys.executable, "-m", "fuzz.worker", kind, str(bundle)]
        self._process: subprocess.Popen[str] | None = None

    def use(self, path: Path) -> tuple[str, str]:
        """How the file ended, and its detail; ``crash SIGNAL`` and ``hang`` cost the process."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
        except OSError:
            return self._bury("crash")
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(PATIENCE_S):
                return self._bury("hang")
        line = process.stdout.readline()
        if not line:
            return self._bury("crash")
        end, detail = json.loads(line)
        return end, detail

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, (_TESTS, os.environ.get("PYTHONPATH")))),
            },
        )
        return self._process

    def _bury(self, end: str) -> tuple[str, str]:
        code = self.close()
        return (f"crash {-code}" if end == "crash" else end), f"exit {code}"

    def close(self) -> int:
        """End the process; its exit code, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.stdin is not None and process.poll() is None:
            process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return code


def fuzz(bundle: Path, kind: str, *, count: int, seed: int = 0, keep: Path | None = None) -> dict[str, Any]:
    """Damage and use ``count`` files.

    Args:
        bundle: a folder, the source of whole files.
        kind: one of ``TARGETS``.
        seed: with the number of a file it decides its damage, so that any one can be made again.
        keep: folder for the files whose end was a finding.

    Returns:
        JSON values: ``ends`` counts by kind; ``findings`` has number, end and detail of the first twenty.
    """
    bundle = bundle.resolve()
    target = TARGETS[kind]
    whole = target.read(bundle)
    ends: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    child = _Child(kind, bundle)
    with tempfile.TemporaryDirectory(prefix="edgekiln-fuzz-") as folder:
        path = Path(folder) / f"case{_ENDINGS.get(kind, '.bin')}"
        for number in range(count):
            path.write_bytes(target.mutate(whole, random.Random(f"{seed}/{number}")))
            end, detail = child.use(path)
            ends[end] += 1
            if end == "ok" or end.startswith("typed"):
                continue
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, keep / f"{kind}-{seed}-{number}{path.suffix}")
            if len(findings) < _EXAMPLES:
                findings.append({"number": number, "end": end, "detail": detail})
        child.close()
    return {
        "kind": kind,
        "seed": seed,
        "count": count,
        "ends": dict(sorted(ends.items())),
        "findings": findings,
    }


_ENDINGS = {"archive": ".zip", "recipe": ".toml", "report": ".json", "engine": ".engine", "onnx": ".onnx"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, fuzz, print; 3 where there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kind", choices=sorted(TARGETS), action="append", help="default: all")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that found something")
    wish = parser.parse_args(arguments)
    found = False
    for kind in wish.kind or sorted(TARGETS):
        result = fuzz(wish.bundle, kind, count=wish.count, seed=wish.seed, keep=wish.keep)
        print(json.dumps(result), flush=True)
        found |= bool(result["findings"])
    return 3 if found else 0


if __name__ == "__main__":
    sys.exit(main())
