"""How time and memory grow with the machine, as an SVG: two charts with logarithmic axes, side by side.

The picture brings its own colours for light and dark pages, and needs nothing from anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 28, 52, 44
GAP, NAME_WIDTH = 20, 118

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #444 } .title { font-weight: 600 } .grid { stroke: #ddd }
.goal { stroke: #c9573f; stroke-dasharray: 5 4 } .line { stroke-width: 2 }
.a { stroke: #3b6fb6; fill: #3b6fb6 } .b { stroke: #3aa17e; fill: #3aa17e } .c { stroke: #e08e45; fill: #e08e45 }
.line { fill: none }
@media (prefers-color-scheme: dark) { text { fill: #ccc } .grid { stroke: #444 } }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One figure by machine size; `name` says it in words, `style` is a class of `STYLE`."""

    figure: str
    name: str
    style: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines in one unit, and the goal for them."""

    title: str
    lines: tuple[Line, ...]
    goal: float
    goal_name: str


CHARTS = (
    Chart(
        "processor time of a plan, ms",
        (
            Line("first_plan_ms", "first plan", "a"),
            Line("p99_ms", "99th percentile", "b"),
            Line("p50_ms", "median", "c"),
        ),
        1000.0,
        "goal of the 99th percentile",
    ),
    Chart("memory, GB", (Line("memory_gb", "the whole process", "a"),), 4.0, "goal"),
)


def picture(sizes: Sequence[Mapping[str, float]]) -> str:
    """The charts of the figures of each size (see `bench.scale.measure`), as one SVG document."""
    charts = "".join(
        f'<g transform="translate({number * (WIDTH + GAP)} 0)">{_chart(chart, sizes)}</g>'
        for number, chart in enumerate(CHARTS)
    )
    whole = len(CHARTS) * (WIDTH + GAP) - GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {HEIGHT}" width="{whole}" height="{HEIGHT}">'
        f"<style>{STYLE}</style>{charts}</svg>\n"
    )


def _chart(chart: Chart, sizes: Sequence[Mapping[str, float]]) -> str:
    nodes = _Axis.over([of["nodes"] for of in sizes], LEFT, WIDTH - RIGHT)
    values = [of[line.figure] for line in chart.lines for of in sizes]
    amount = _Axis.over([*values, chart.goal], HEIGHT - BOTTOM, TOP)
    parts = [f'<text class="title" x="{LEFT}" y="18">{chart.title}</text>']
    parts += [_rule(LEFT, WIDTH - RIGHT, amount.at(tick), f"{tick:,g}") for tick in amount.ticks()]
    parts += [
        f'<text x="{nodes.at(tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:,g}</text>'
        for tick in nodes.ticks()
    ]
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">nodes</text>')
    at_goal = amount.at(chart.goal)
    parts.append(f'<line class="goal" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_goal:.1f}" y2="{at_goal:.1f}"/>')
    parts.append(f'<text x="{LEFT + 6}" y="{at_goal - 5:.1f}">{chart.goal_name}</text>')
    for number, line in enumerate(chart.lines):
        points = [(nodes.at(of["nodes"]), amount.at(of[line.figure])) for of in sizes]
        parts.append(_drawn(line, points) + _legend(line, LEFT + number * NAME_WIDTH))
    return "".join(parts)


def _rule(from_x: float, to_x: float, y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{from_x}" x2="{to_x}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{from_x - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _drawn(line: Line, points: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    return f'<polyline class="line {line.style}" points="{path}"/>{dots}'


def _legend(line: Line, x: float) -> str:
    return f'<circle class="{line.style}" cx="{x + 4}" cy="32" r="4"/><text x="{x + 13}" y="36">{line.name}</text>'


@dataclass(frozen=True, slots=True)
class _Axis:
    """Whole powers of ten, from one pixel to another."""

    low: int
    high: int
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low = math.floor(math.log10(min(values)))
        return cls(low, max(low + 1, math.ceil(math.log10(max(values)))), start, end)

    def at(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]
