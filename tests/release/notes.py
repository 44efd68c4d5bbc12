"""Cuts the notes of one version out of CHANGELOG.md (Keep a Changelog). It knows nothing of git and of packages."""

from __future__ import annotations

import re

from edgekiln.runtime.errors import UsageError

__all__ = ["cut_notes"]

UNRELEASED = "Unreleased"
_HEADING = re.compile(r"^## \[([^\]]+)\].*$", re.MULTILINE)


def cut_notes(changelog: str, version: str) -> str:
    """The notes of ``version`` as Markdown: its own section, or *Unreleased* where it has none yet.

    Raises:
        UsageError: neither has a line, or the version has a section with a date and there are later changes: a file
            of the same name with other contents must not be made.
    """
    sections = _sections(changelog)
    own, later = sections.get(version, ""), sections.get(UNRELEASED, "")
    if own and later:
        raise UsageError(
            f"CHANGELOG.md has a section for {version}, and changes under {UNRELEASED} after it.",
            hint="Raise the version in runtime/edgekiln/runtime/version.py, or move the changes to that section.",
        )
    if not (own or later):
        raise UsageError(
            f"CHANGELOG.md says nothing about {version}: no section of that name, and {UNRELEASED} is empty.",
            hint=f"It has sections for: {', '.join(sections) or 'no version'}.",
        )
    return f"# edgekiln {version}{'' if own else ' (not released yet)'}\n\n{own or later}\n"


def _sections(changelog: str) -> dict[str, str]:
    """The text below each heading of a version, by version."""
    _, *parts = _HEADING.split(changelog)
    return dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))
