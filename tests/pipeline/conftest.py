"""The command line, run in the test's own process, and in processes that cost no imports."""

import pytest
from launching import Launcher

from edgekiln.pipeline.cli import main


@pytest.fixture
def edgekiln(capsys):
    """Run the command line: (exit code, stdout, stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "\x1b" not in out + err  # no colours and no cursor moves where nobody looks at a terminal
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture(scope="session")
def launcher():
    """Starts processes of the command line; see ``launching``."""
    with Launcher() as launcher:
        yield launcher
