import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekiln.export.engines.cache import EngineCache, default_cache_folder, engine_key
from edgekiln.runtime.errors import ResourceError, UntrustedError

KEY = engine_key(model="aa", library=["tensorrt-rtx", "1.7.1.116"])

# A builder in a process of its own: counts its builds, says that it has begun, and takes a while.
BUILDER = """
import sys, time
from pathlib import Path
from edgekiln.export.engines.cache import EngineCache
root, key, counter, seconds = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), float(sys.argv[4])
def build(folder):
    with counter.open("a") as file:
        file.write("built\\n")
    (folder / "engine").write_bytes(b"engine")
    print("building", flush=True)
    time.sleep(seconds)
    return {"by": "child"}
folder, cached = EngineCache(root).fetch(key, build, lambda text: print(text, flush=True))
print("cached" if cached else "built", (folder / "engine").read_text(), flush=True)
"""


class Build:
    """A builder that counts how often it is called."""

    def __init__(self, content=b"engine"):
        self.content, self.calls = content, 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "engine").write_bytes(self.content)
        (folder / "result.json").write_text("{}")
        return {"seconds": 1.5}


class Told(list):
    def __call__(self, text):
        self.append(text)


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def start_builder(cache, counter, seconds=0.0):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(cache.root), KEY, str(counter), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


# -- hit and miss


def test_second_fetch_is_a_hit(cache):
    build, told = Build(), Told()
    folder, cached = cache.fetch(KEY, build, told)
    assert (cached, (folder / "engine").read_bytes()) == (False, b"engine")
    assert cache.fetch(KEY, build, told) == (folder, True)
    assert (build.calls, told) == (1, [])
    assert cache.about(KEY) == {"seconds": 1.5}


def test_another_key_is_a_miss(cache):
    cache.fetch(KEY, Build(), Told())
    other = Build(b"other")
    folder, cached = cache.fetch(engine_key(model="bb"), other, Told())
    assert (cached, other.calls, (folder / "engine").read_bytes()) == (False, 1, b"other")


def test_key_depends_on_every_part_and_not_on_their_order():
    parts = {
        "model": "aa",
        "gpu": None,
        "library": ["tensorrt", "10.3"],
        "options": {"tf32": False, "max": 8},
    }
    changed = [
        parts | {"model": "ab"},
        parts | {"gpu": ["Orin", [8, 7], 16]},
        parts | {"library": ["tensorrt", "10.4"]},
        parts | {"options": {"tf32": True, "max": 8}},
        parts | {"options": {"tf32": False, "max": 9}},
        parts | {"more": None},
    ]
    keys = [engine_key(**values) for values in (parts, *changed)]
    assert len(set(keys)) == len(keys)
    assert engine_key(**dict(reversed(parts.items()))) == keys[0]


# -- damaged entries


def change_engine(folder):
    (folder / "engine").write_bytes(b"Engine")


def cut_engine(folder):
    (folder / "engine").write_bytes(b"")


def lose_engine(folder):
    (folder / "engine").unlink()


def add_file(folder):
    (folder / "more").write_bytes(b"")


def claim_another_key(folder):
    about = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(about | {"key": engine_key(model="bb")}))


def lose_about(folder):
    (folder / "about.json").unlink()


def spoil_about(folder):
    (folder / "about.json").write_text("[]")


def turn_into_a_file(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_engine, "was changed (engine)"),
        (cut_engine, "was changed (engine)"),
        (lose_engine, "lacks a file or has one too many"),
        (add_file, "lacks a file or has one too many"),
        (claim_another_key, "is of another key"),
        (lose_about, "cannot be read"),
        (spoil_about, "cannot be read"),
        (turn_into_a_file, "cannot be read"),
    ],
)
def test_damaged_entry_is_built_again_and_told_once(cache, damage, words):
    folder, _ = cache.fetch(KEY, Build(), Told())
    damage(folder)
    build, told = Build(), Told()
    assert cache.fetch(KEY, build, told) == (folder, False)
    assert told == [f"the cached engine {KEY[:12]} {words}: it is built again"]
    assert cache.fetch(KEY, build, told) == (folder, True)
    assert (build.calls, len(told)) == (1, 1)


# -- builders that fail, die or compete


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), BlockingIOError(11, "try again")])
def test_build_that_raises_leaves_nothing(cache, error):
    def build(folder):
        (folder / "engine").write_bytes(b"half")
        raise error

    told = Told()
    with pytest.raises(type(error)):
        cache.fetch(KEY, build, told)
    assert [path.name for path in cache.root.iterdir()] == [f"{KEY}.lock"]
    assert (told, cache.entries()) == ([], [])
    assert cache.fetch(KEY, Build(), told)[1] is False


def test_full_disk_is_a_matter_of_resources(cache):
    def build(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(
        ResourceError, match=r"cannot be written: No space left on device\. Set EDGEKILN_CACHE"
    ):
        cache.fetch(KEY, build, Told())


def test_killed_builder_lets_the_next_one_build(cache, tmp_path):
    child = start_builder(cache, tmp_path / "counter", seconds=60)
    with child.stdout:
        assert child.stdout.readline() == "building\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert (cache.root / f".{KEY}" / "engine").exists()
    assert cache.entries() == []
    build, told = Build(b"mine"), Told()
    folder, cached = cache.fetch(KEY, build, told)
    assert (cached, told, (folder / "engine").read_bytes()) == (False, [], b"mine")
    assert sorted(path.name for path in cache.root.iterdir()) == sorted([KEY, f"{KEY}.lock"])


def test_two_processes_build_once(cache, tmp_path):
    counter = tmp_path / "counter"
    first = start_builder(cache, counter, seconds=2)  # long enough for the second one's imports
    with first.stdout:
        assert first.stdout.readline() == "building\n"
        second = start_builder(cache, counter)
        with second.stdout:
            assert second.stdout.read().splitlines() == [
                "another process is building this engine: waiting for it",
                "cached engine",
            ]
        assert first.stdout.read() == "built engine\n"
    assert (first.wait(), second.wait()) == (0, 0)
    assert counter.read_text() == "built\n"


# -- whose folder it is


def test_cache_is_its_owners_alone(cache):
    cache.fetch(KEY, Build(), Told())
    assert cache.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_folder_that_others_can_write_is_refused(cache, mode):
    cache.root.mkdir()
    cache.root.chmod(mode)
    build = Build()
    with pytest.raises(UntrustedError, match=rf"Run: chmod 700 {cache.root}"):
        cache.fetch(KEY, build, Told())
    assert build.calls == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_folder_of_somebody_else_is_refused(cache):
    cache.root.mkdir(mode=0o700)
    os.chown(cache.root, 12345, -1)
    with pytest.raises(UntrustedError, match="belongs to, or can be written by, somebody else"):
        cache.fetch(KEY, Build(), Told())


def test_file_in_the_way_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResourceError, match=r"cannot be written: (File exists|Not a directory)\."):
            EngineCache(root).fetch(KEY, Build(), Told())


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_told(cache):
    cache.root.mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="cannot be written: Permission denied"):
        cache.fetch(KEY, Build(), Told())


# -- looking and pruning


def test_entries_are_what_was_built_last_used_first(cache):
    keys = [engine_key(model=name) for name in "abc"]
    for age, key in enumerate(keys):
        folder, _ = cache.fetch(key, Build(), Told())
        os.utime(folder, (time.time() - 100 * age - 100,) * 2)
    (cache.root / "timing-gpu.cache").write_bytes(b"")
    (cache.root / "notes").mkdir()
    assert [entry.key for entry in cache.entries()] == keys
    entry = cache.entries()[0]
    assert (entry.folder, entry.about) == (cache.root / keys[0], {"seconds": 1.5})
    assert entry.size == sum(path.stat().st_size for path in entry.folder.iterdir()) > len(b"engine{}")
    cache.fetch(keys[2], Build(), Told())  # a hit is a use
    assert [entry.key for entry in cache.entries()] == [keys[2], *keys[:2]]


def test_no_folder_no_entries(cache):
    assert cache.entries() == []
    assert cache.prune() == []
    assert not cache.root.exists()


def test_prune_takes_the_old_and_the_abandoned(cache):
    old, new, abandoned = (engine_key(model=name) for name in "abc")
    for key in (old, new):
        cache.fetch(key, Build(), Told())
    os.utime(cache.root / old, (time.time() - 1000,) * 2)
    (cache.root / f".{abandoned}").mkdir()
    assert [entry.key for entry in cache.prune(older_than_seconds=500)] == [old]
    assert not (cache.root / f".{abandoned}").exists()
    assert [entry.key for entry in cache.entries()] == [new]
    assert [entry.key for entry in cache.prune()] == [new]
    assert cache.fetch(new, Build(), Told())[1] is False


def test_prune_leaves_what_is_being_built(cache, tmp_path):
    child = start_builder(cache, tmp_path / "counter", seconds=1)
    with child.stdout:
        assert child.stdout.readline() == "building\n"
        assert cache.prune() == []
        assert child.stdout.read() == "built engine\n"
    assert child.wait() == 0
    assert [entry.about for entry in cache.entries()] == [{"by": "child"}]


def test_folder_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("EDGEKILN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_folder() == Path("/home/somebody/.cache/edgekiln/engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert default_cache_folder() == Path("/var/cache/edgekiln/engines")
    monkeypatch.setenv("EDGEKILN_CACHE", "~/engines")
    assert default_cache_folder() == EngineCache().root == Path("/home/somebody/engines")


def test_supplement_is_part_of_its_entry_once_there_is_one(cache):
    folder, _ = cache.fetch(KEY, Build(), Told())
    assert cache.supplement(KEY, "layers.json", lambda: None, Told()) is None
    assert not (folder / "layers.json").exists()
    assert cache.supplement(KEY, "layers.json", lambda: "{}", Told()) == "{}"
    assert cache.supplement(KEY, "layers.json", lambda: "other", Told()) == "{}"
    build, told = Build(), Told()
    assert cache.fetch(KEY, build, told) == (folder, True)
    (folder / "layers.json").write_text("changed")
    assert (
        cache.supplement(KEY, "layers.json", lambda: "new", Told()) == "new"
    )  # and nothing is kept in what is damaged
    assert cache.fetch(KEY, build, told) == (folder, False)
    assert "was changed (layers.json)" in told[0]


def test_supplement_of_an_entry_that_is_gone_is_given_and_not_kept(cache):
    assert cache.supplement(KEY, "layers.json", lambda: "{}", Told()) == "{}"
    assert cache.entries() == []
