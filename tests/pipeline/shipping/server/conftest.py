"""Servers for the tests of ``edgekiln serve``: see ``server_support``."""

import shutil
from pathlib import Path

import pytest
from launching import Launcher

for _module in ("starlette", "uvicorn", "python_multipart", "httpx"):
    pytest.importorskip(_module, reason="the extra 'serve' is not installed")

from server_support import MODULES, Server  # noqa: E402 -- after the skip


@pytest.fixture(scope="session")
def light_launcher():
    with Launcher(MODULES) as launcher:
        yield launcher


@pytest.fixture(scope="session")
def bundle(tiny_run):
    return tiny_run[2].bundle


@pytest.fixture(scope="session")
def server(light_launcher, bundle, tmp_path_factory):
    """One for all tests that leave it as it is: both variants, and limits that a test can reach."""
    server = Server(
        light_launcher, bundle, tmp_path_factory.mktemp("serve"), "--variant", "fp32", "--variant", "int8",
        "--max-rate", "0", header_seconds=0.5, body_seconds=0.7, body_bytes=300_000, pictures=4,
    )  # fmt: skip
    yield server
    assert server.stop() == 0
    assert "Traceback" not in server.log


@pytest.fixture
def start(light_launcher, tmp_path):
    """Starts servers that a test may change and stop."""
    started = []

    def start_one(bundle, *options, **limits):
        started.append(
            Server(light_launcher, bundle, tmp_path, *options, name=f"serve{len(started)}", **limits)
        )
        return started[-1]

    yield start_one
    for server in started:
        if server.process.code is None:
            server.stop()
        assert server.process.code == 0, server.log
        assert "Traceback" not in server.log


@pytest.fixture
def own_bundle(bundle, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(bundle, tmp_path / "own-bundle"))


@pytest.fixture(scope="session")
def photo(tiny_run) -> Path:
    return tiny_run[0].parent / "pictures" / "red" / "003.png"
