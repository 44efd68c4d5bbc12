"""Parts of limited size and the way back."""

import json
import shutil

import numpy as np
import pytest

from edgekiln.pipeline.gpu_suite.packing import (
    MANIFEST,
    PART_BYTES,
    Packed,
    join_parts,
    pack_parts,
    read_manifest,
)
from edgekiln.runtime.errors import UsageError

SIZES = {"small.npz": 900, "large.whl": 25_000, "empty.txt": 0, "middle.onnx": 5_000, "exact.engine": 5_120}
LIMIT = 10_240  # of which half is for the manifest: files have 5,120


@pytest.fixture
def packed(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    generator = np.random.default_rng(0)
    for name, size in SIZES.items():
        (source / name).write_bytes(generator.bytes(size))
    folder = tmp_path / "parts"
    folder.mkdir()
    files = [Packed(source / name, {"kind": "file"}) for name in SIZES]
    return source, folder, pack_parts(files, folder, {"tools": {"torch": "2.9"}}, LIMIT)


def test_parts_keep_to_their_size_and_hold_the_manifest(packed):
    _, folder, manifest = packed
    parts = sorted(folder.glob("part-*"))
    assert len(parts) == manifest["parts"] > 1
    for part in parts:
        assert sum(path.stat().st_size for path in part.iterdir()) <= LIMIT
        assert (part / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    assert [piece["file"] for piece in manifest["files"]["large.whl"]["pieces"]] == [
        f"large.whl.piece-{i}-of-5" for i in range(1, 6)
    ]
    assert manifest["files"]["small.npz"]["pieces"][0]["part"] == 1  # what comes first lies in the first part
    assert PART_BYTES < 64 * 2**20


def test_what_was_cut_is_joined_to_the_same_bytes(packed, tmp_path):
    source, folder, manifest = packed
    assert read_manifest(folder) == json.loads(json.dumps(manifest))
    found = join_parts(folder, manifest, tmp_path / "joined")
    assert {entry["state"] for entry in found.values()} == {"done"}
    for name in SIZES:
        assert (tmp_path / "joined" / name).read_bytes() == (source / name).read_bytes()


def test_parts_that_did_not_arrive_are_told_and_the_others_are_used(packed, tmp_path):
    _, folder, manifest = packed
    (folder / MANIFEST).unlink()
    lost = manifest["files"]["large.whl"]["pieces"][2]["part"]
    shutil.rmtree(folder / f"part-{lost}")
    found = join_parts(folder, read_manifest(folder), tmp_path / "joined")
    assert found["large.whl"]["state"] == "skipped"
    assert found["large.whl"]["reason"] == f"not here: part-{lost}"
    assert found["small.npz"]["state"] == "done"
    assert not (tmp_path / "joined" / "large.whl").exists()


def test_damaged_bytes_are_not_used(packed, tmp_path):
    _, folder, manifest = packed
    piece = manifest["files"]["middle.onnx"]["pieces"][0]
    path = folder / f"part-{piece['part']}" / piece["file"]
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.unlink()  # it may be one file with the source
    path.write_bytes(data)
    found = join_parts(folder, manifest, tmp_path / "joined")
    assert found["middle.onnx"]["state"] == "failed"
    assert (
        f"part-{piece['part']}/middle.onnx is damaged: its sha256 is not {piece['sha256']}"
        in (found["middle.onnx"]["reason"])
    )
    assert not (tmp_path / "joined" / "middle.onnx").exists()
    assert found["small.npz"]["state"] == "done"


def test_packing_again_leaves_nothing_of_before(packed):
    source, folder, manifest = packed
    again = pack_parts([Packed(source / "small.npz")], folder, {}, LIMIT)
    assert again["parts"] == 1 < manifest["parts"]
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, "part-1"]


def test_packing_that_is_ended_leaves_no_manifest_to_believe(packed, monkeypatch):
    source, folder, _ = packed

    def ended(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekiln.pipeline.gpu_suite.packing.hash_file", ended)
    with pytest.raises(KeyboardInterrupt):
        pack_parts([Packed(source / "small.npz")], folder, {}, LIMIT)
    assert read_manifest(folder) is None


def test_names_and_manifests_that_lead_elsewhere_are_refused(packed, tmp_path):
    source, folder, manifest = packed
    (source / "a b").write_bytes(b"")
    for files in ([Packed(source / "a b")], [Packed(source / "small.npz")] * 2):
        with pytest.raises(UsageError, match="A part cannot hold a file of the name"):
            pack_parts(files, folder, {}, LIMIT)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "files": {"../../x": {}}}))
    with pytest.raises(UsageError, match="is none of"):
        read_manifest(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        read_manifest(folder)
    assert read_manifest(tmp_path) is None
