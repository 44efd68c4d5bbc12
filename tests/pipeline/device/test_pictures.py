import hashlib

from edgekiln.pipeline.device.pictures import _match_files
from edgekiln.pipeline.workspace.progress import SilentProgress


def test_files_are_matched_by_their_bytes_and_the_first_of_equal_ones_counts(tmp_path):
    for name, content in (("b", b"one"), ("a/c", b"one"), ("d", b"two"), ("e", b"other")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    index = {hashlib.sha256(content).hexdigest(): i for i, content in enumerate([b"two", b"one", b"absent"])}
    found, others = _match_files(tmp_path, index, SilentProgress())
    assert found == {0: tmp_path / "d", 1: tmp_path / "a" / "c"}
    assert others == 1
