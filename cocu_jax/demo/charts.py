"""Line charts as inline SVG; colours come from the page's style sheet."""

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 12, 34


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        kind: CSS class that colours it.
        points: (x, y) in data units, x ascending.
        thin: drawn faintly, e.g. a single seed beside the mean.
    """

    kind: str
    points: Sequence[tuple[float, float]]
    thin: bool = False


def line_chart(lines: Sequence[Line], title: str, x_label: str) -> Markup:
    """An SVG element; empty if no line has a point.

    Args:
        lines: later ones are drawn over earlier ones.
        title: what is shown, for screen readers too.
        x_label: what the horizontal axis counts.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup("")
    x_ticks = round_ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_ticks = round_ticks(min(y for _, y in points), max(y for _, y in points))
    x_low, x_high = min(x for x, _ in points), max(x_ticks[-1], max(x for x, _ in points))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        up = (y - y_low) / ((y_high - y_low) or 1)
        left = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
        return round(left, 1), round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in (tick for tick in x_ticks if tick >= x_low):
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x}" y="{_HEIGHT - 16}" text-anchor="middle">{tick:g}</text>')
    for line in lines:
        path = " ".join("{},{}".format(*place(*point)) for point in line.points)
        weight = "thin" if line.thin else "thick"
        parts.append(f'<polyline class="{escape(line.kind)} {weight}" points="{path}"/>')
    label = (
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>'
    )
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}{label}</svg>"
    )


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that begin at or below `low` and end at or above `high`."""
    span = (high - low) or abs(high) or 1.0
    magnitude = 10 ** math.floor(math.log10(span / count))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude * count >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
