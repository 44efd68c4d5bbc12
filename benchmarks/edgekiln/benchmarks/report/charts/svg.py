"""The parts of a chart: a scale, and an SVG whose x is a share of its width and whose y is in CSS pixels.

Classes, and so colours, stand in ``templates/style.css``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Chart", "Scale", "shorten", "span_scale"]

_ANCHORS = {"start": "", "middle": "middle", "end": "end"}
_MARKS = {
    "dot": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0",
    "small": "M-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0 -4.4 0",
    "square": "M-4 -4h8v8h-8z",
    "diamond": "M0 -6.5L6.5 0L0 6.5L-6.5 0z",
    "triangle": "M0 -5L4.5 3.5h-9z",
    "cross": "M-4 -4L4 4M4 -4L-4 4",
}


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to shares of an axis; ``first`` and ``last`` are the shares of ``low`` and ``high``."""

    low: float
    high: float
    first: float = 0.0
    last: float = 1.0
    log: bool = False

    def place(self, value: float) -> float:
        """Share of the axis; values outside lie on its end."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = (min(max(value, low), high) - low) / (high - low)
        return self.first + share * (self.last - self.first)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values from low to high, at most so many."""
        if self.log:
            return _thin(_log_ticks(self.low, self.high), most)
        step = _round_step((self.high - self.low) / most)
        start, end = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(start, end + 1)]


def span_scale(
    values: Iterable[float], *, margin: float = 0.06, first: float = 0.0, last: float = 1.0
) -> Scale:
    """A scale over all values with some room at both ends."""
    values = [v for v in values if math.isfinite(v)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = margin * (high - low) or max(abs(high), 1.0) * 0.05
    return Scale(low - room, high + room, first, last)


def _round_step(least: float) -> float:
    power = math.pow(10, math.floor(math.log10(least)))
    return next(power * step for step in (1, 2, 2.5, 5, 10) if power * step >= least * (1 - 1e-9))


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _thin(ticks: Sequence[float], most: int) -> list[float]:
    return list(ticks[:: math.ceil(len(ticks) / most)]) if ticks else []


@dataclass
class Chart:
    """Elements in the order in which they are drawn; ``kind`` is one or more CSS classes.

    x is a share of the width, y and sizes of marks are in pixels.
    """

    height: float
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, words: str, kind: str = "", *, anchor: str = "start", dx: float = 0
    ) -> None:
        """``dx`` is in pixels; ``anchor`` is the end of the words that stands at x."""
        attributes = {"class": kind, "text-anchor": _ANCHORS[anchor], "dx": _number(dx) if dx else ""}
        self._add("text", {"x": _share(x), "y": _number(y), **attributes}, html.escape(words, quote=False))

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """A box whose left upper corner is (x, y)."""
        place = {"x": _share(x), "y": _number(y), "width": _share(max(width, 0)), "height": _number(height)}
        self._add("rect", {**place, "class": kind})

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """One straight line."""
        ends = {"x1": _share(x1), "y1": _number(y1), "x2": _share(x2), "y2": _number(y2)}
        self._add("line", {**ends, "class": kind})

    def mark(self, x: float, y: float, kind: str, shape: str = "dot", title: str = "") -> None:
        """A shape of fixed size; ``title`` is what a pointer that rests on it is told."""
        told = f"<title>{html.escape(title, quote=False)}</title>" if title else ""
        self._add(
            "svg",
            {"x": _share(x), "y": _number(y)},
            f'<path d="{_MARKS[shape]}" class="{kind}">{told}</path>',
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through (share, pixel) points. The box stretches, the width of the line does not."""
        steps = "L".join(f"{_number(1000 * x)} {_number(y)}" for x, y in points)
        inner = f'<path d="M{steps}" class="{kind}"/>'
        box = {"viewBox": f"0 0 1000 {_number(self.height)}", "preserveAspectRatio": "none"}
        self._add("svg", {"width": "100%", "height": _number(self.height), **box}, inner)

    def legend(self, y: float, entries: Sequence[tuple[str, str, str]], columns: int = 4) -> None:
        """Rows of (words, class of the mark, shape), 20 pixels each."""
        for number, (words, kind, shape) in enumerate(entries):
            x, row = (number % columns) / columns, y + 20 * (number // columns)
            self.mark(x + 0.016, row - 4.5, kind, shape)
            self.text(x + 0.016, row, words, "dim", dx=10)

    def axis(self, scale: Scale, y: float, label: str, *, top: float, form: str = "g") -> None:
        """A horizontal axis at y, its numbers below it, thin lines up to ``top``; takes 38 pixels below y."""
        ticks = scale.ticks()
        for tick in ticks:
            x = scale.place(tick)
            self.line(x, top, x, y, "grid")
            anchor = "start" if x < 0.03 else "end" if x > 0.97 else "middle"
            self.text(x, y + 15, format(tick, form), "dim", anchor=anchor)
        self.line(0, y, 1, y, "axis")
        self.text(0.5, y + 32, label, "dim", anchor="middle")

    def rules(self, scale: Scale, form: str = "g", most: int = 4) -> None:
        """Lines across at the ticks of a vertical ``scale``, whose shares are pixels, their numbers above them."""
        for tick in scale.ticks(most):
            y = scale.place(tick)
            self.line(0, y, 1, y, "grid")
            self.text(0, y - 3, format(tick, form), "dim small")

    def write(self, label: str, *, size: tuple[int, int] | None = None, style: str = "") -> str:
        """The ``<svg>``; ``label`` is read out in its place. With a ``size`` it is a file of its own."""
        place = {"width": "100%", "height": _number(self.height)}
        if size is not None:
            place = {"xmlns": "http://www.w3.org/2000/svg", "width": f"{size[0]}", "height": f"{size[1]}"}
            place["viewBox"] = f"0 0 {size[0]} {size[1]}"  # an image that is shown smaller shrinks as a whole
        told = {**place, "class": "chart", "role": "img", "aria-label": label}
        return _element("svg", told, style + "".join(self.parts))

    def _add(self, tag: str, attributes: dict[str, str], inner: str = "") -> None:
        self.parts.append(_element(tag, attributes, inner))


def _element(tag: str, attributes: dict[str, str], inner: str) -> str:
    words = "".join(f' {name}="{html.escape(value)}"' for name, value in attributes.items() if value)
    return f"<{tag}{words}>{inner}</{tag}>" if inner else f"<{tag}{words}/>"


def _share(value: float) -> str:
    return f"{_number(100 * value)}%"


def _number(value: float) -> str:
    """At most two digits behind the point."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def shorten(name: str, length: int = 22) -> str:
    """A name that leaves room for the chart; line breaks and other controls are no part of it."""
    name = "".join(letter if letter.isprintable() else " " for letter in name)
    end = length // 2  # the middle goes: names often differ in their last letters only
    return name if len(name) <= length else f"{name[: length - end - 1]}…{name[-end:]}"
