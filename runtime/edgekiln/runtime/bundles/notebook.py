"""What a notebook shows of a result: a small table as HTML. No style sheet, no script, nothing from outside.

It takes the page's colours, so that it can be read on light and on dark pages, and it imports no notebook: IPython
asks an object for ``_repr_html_``. Names and reasons come from files that anybody may have written: they are escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["show_table", "show_variants"]

MOST_ROWS = 20
MOST_CHARACTERS = 200


def show_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """A title and a table of at most 20 rows; a float is a share from 0 to 1, drawn as a bar beside its number."""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:MOST_ROWS])
    head = "".join(f'<th style="text-align:left">{_escape(text)}</th>' for text in headings)
    more = f"<div>and {len(rows) - MOST_ROWS} more</div>" if len(rows) > MOST_ROWS else ""
    return (
        f'<div><div><b>{_escape(title)}</b></div><table style="color:inherit;font:inherit">'
        f"{f'<thead><tr>{head}</tr></thead>' if head else ''}"
        f"<tbody>{body}</tbody></table>{more}</div>"
    )


def show_variants(title: str, variants: Iterable[Sequence[str]]) -> str:
    """One row for each variant: name, backend, precision, verdict, reason."""
    return show_table(title, ("variant", "runs with", "precision", "verdict", "reason"), list(variants))


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        wrap = "nowrap" if len(value) <= 40 else "normal"  # a sentence wraps, a name does not
        return f'<td style="text-align:left;white-space:{wrap}">{_escape(value)}</td>'
    width = 8 * min(max(value, 0.0), 1.0)
    bar = f'<div style="width:{width:.2f}em;height:.7em;background:currentColor;opacity:.6"></div>'
    return (
        f'<td style="text-align:left"><div style="display:flex;gap:.6em;align-items:center">'
        f"<span>{value:.3f}</span>{bar}</div></td>"
    )


def _escape(text: str) -> str:
    """Text that cannot be markup, reorder its surroundings, or fill the page."""
    clipped = text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"
    return html.escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in clipped))
