"""The notes of a release are the section of its version, and a version is not released twice."""

import pytest
from click.testing import CliRunner
from release.__main__ import release
from release.notes import cut_notes
from tests_support import ROOT

from edgekiln.runtime.errors import UsageError
from edgekiln.runtime.version import __version__

HEAD = "# Changelog\n\nAll of it.\n\n"
FIRST = "## [0.1.0] - 2026-12-01\n\n### Added\n\n- The first thing: `[0.1.0]`.\n"
SECOND = "## [0.2.0] - 2027-01-01\n\n### Fixed\n\n- The second thing.\n\n"
LATER = "## [Unreleased]\n\n### Added\n\n- The third thing.\n\n"


@pytest.mark.parametrize(
    ("text", "version", "notes"),
    [
        (HEAD + SECOND + FIRST, "0.2.0", "# edgekiln 0.2.0\n\n### Fixed\n\n- The second thing.\n"),
        (
            "## [Unreleased]\n\n" + FIRST,
            "0.1.0",
            "# edgekiln 0.1.0\n\n### Added\n\n- The first thing: `[0.1.0]`.\n",
        ),
        (LATER + FIRST, "0.2.0", "# edgekiln 0.2.0 (not released yet)\n\n### Added\n\n- The third thing.\n"),
    ],
)
def test_notes_are_the_section_of_the_version_alone(text, version, notes):
    assert cut_notes(text, version) == notes


@pytest.mark.parametrize(
    ("text", "version", "said"),
    [
        (LATER + FIRST, "0.1.0", "has a section for 0.1.0, and changes under Unreleased after it"),
        (HEAD + FIRST, "0.2.0", "says nothing about 0.2.0"),
        (HEAD, "0.1.0", "says nothing about 0.1.0"),
    ],
)
def test_a_version_that_is_out_or_unknown_is_refused(text, version, said):
    with pytest.raises(UsageError, match=said):
        cut_notes(text, version)


def test_the_command_prints_the_notes_of_this_checkout():
    done = CliRunner().invoke(release, ["notes"])
    assert done.exit_code == 0, done.output
    assert done.output == cut_notes((ROOT / "CHANGELOG.md").read_text("utf-8"), __version__)
    refused = CliRunner().invoke(release, ["notes", "0.0.1", "wheel"])
    assert refused.exit_code == 2
