"""The command line, run in the test's own process."""

import pytest

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
