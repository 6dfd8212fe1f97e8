"""Charts as inline SVG: steps and areas over time, and bars of parts. Colours are CSS classes of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

WIDTH, HEIGHT = 960, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 30


@dataclass(frozen=True, slots=True)
class Series:
    """`values` [bins] over equal spans of time; `style` is a CSS class."""

    name: str
    values: Values
    style: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar."""

    name: str
    amount: float
    style: str


def binned(times: Values, values: Values, edges: Values) -> Values:
    """Mean of a step function between each two edges [len(edges) - 1]. `values[i]` holds from `times[i]` on."""
    until = np.append(times[1:], max(edges[-1], times[-1]))
    integral = np.concatenate([[0.0], np.cumsum(values * (until - times))])
    at_edges = np.interp(edges, np.append(times, until[-1]), integral)
    means: Values = np.diff(at_edges) / np.diff(edges)
    return means


def overlaid(series: Sequence[Series], edges_s: Values, unit: str) -> str:
    """Areas over each other, the first one at the back."""
    top = _nice(max(float(s.values.max(initial=0.0)) for s in series))
    shapes = [_area(np.zeros_like(s.values), s.values, top, s) for s in series]
    return _framed(shapes, edges_s, top, unit)


def stacked(series: Sequence[Series], edges_s: Values, unit: str) -> str:
    """Areas on top of each other, the first one at the bottom."""
    total = np.sum([s.values for s in series], axis=0)
    top = _nice(float(total.max(initial=0.0)))
    floor, shapes = np.zeros_like(total), []
    for s in series:
        shapes.append(_area(floor, floor + s.values, top, s))
        floor = floor + s.values
    return _framed(shapes, edges_s, top, unit)


def bar(parts: Sequence[Part], unit: str) -> str:
    """One bar, cut into parts, with a key below that gives each one's amount and share."""
    total = sum(p.amount for p in parts) or 1.0
    pieces, x = [], 0.0
    for p in parts:
        width = WIDTH * p.amount / total
        pieces.append(
            f'<rect class="{p.style}" x="{x:.1f}" y="0" width="{max(width, 0.0):.1f}" height="34">'
            f"<title>{escape(p.name)}: {p.amount:,.1f} {unit}</title></rect>"
        )
        x += width
    key = "".join(
        f'<li><i class="{p.style}"></i>{escape(p.name)} <b>{p.amount:,.1f}</b> {unit} '
        f"<span>{100 * p.amount / total:.2f} %</span></li>"
        for p in parts
    )
    svg = f'<svg viewBox="0 0 {WIDTH} 34" role="img" preserveAspectRatio="none" class="bar">{"".join(pieces)}</svg>'
    return f'{svg}<ul class="key">{key}</ul>'


def legend(series: Sequence[Series]) -> str:
    """Names beside colours."""
    return '<ul class="key">' + "".join(f'<li><i class="{s.style}"></i>{escape(s.name)}</li>' for s in series) + "</ul>"


def _area(low: Values, high: Values, top: float, series: Series) -> str:
    """A step area: level within each bin."""
    x = LEFT + np.arange(len(high) + 1) * (WIDTH - LEFT - RIGHT) / max(len(high), 1)
    points = [f"{a:.1f},{_y(v, top):.1f}" for i, v in enumerate(high) for a in (x[i], x[i + 1])]
    back = [f"{a:.1f},{_y(low[i], top):.1f}" for i in reversed(range(len(low))) for a in (x[i + 1], x[i])]
    title = f"<title>{escape(series.name)}: {high.mean() - low.mean():.1f} on average</title>"
    return f'<polygon class="{series.style}" points="{" ".join(points + back)}">{title}</polygon>'


def _framed(shapes: Sequence[str], edges_s: Values, top: float, unit: str) -> str:
    lines = []
    for fraction in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(top * fraction, top)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top * fraction:g}</text>')
    for at_s, label in _ticks(float(edges_s[0]), float(edges_s[-1])):
        x = LEFT + (WIDTH - LEFT - RIGHT) * (at_s - edges_s[0]) / (edges_s[-1] - edges_s[0])
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{label}</text>')
    label = f'<text x="{LEFT}" y="{TOP + 12}" dx="6" class="unit">{escape(unit)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">' + "".join(lines[:10]) + "".join(shapes) + "".join(lines[10:])
        + label + "</svg>"
    )  # fmt: skip


def _y(value: float, top: float) -> float:
    return float(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top)


def _nice(most: float) -> float:
    """The next round number, in four even steps."""
    if most <= 0:
        return 1.0
    scale = 10 ** np.floor(np.log10(most))
    return float(next(step * scale for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if step * scale >= most))


def _ticks(start_s: float, end_s: float) -> list[tuple[float, str]]:
    """Round times, about eight of them."""
    steps = (60, 300, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 2_592_000, 31_536_000)
    step = next((s for s in steps if (end_s - start_s) / s <= 9), steps[-1])
    first = int(-(-start_s // step))
    size, unit = (86_400, "d") if step >= 86_400 else (3600, "h") if step >= 3600 else (60, "min")
    return [(n * step, f"{n * step / size:g} {unit}") for n in range(first, int(end_s // step) + 1)]
