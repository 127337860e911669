"""Draw one figure of a table as an SVG bar chart."""

from dataclasses import dataclass
from xml.sax.saxutils import escape

LEFT, WIDTH, STEP = 270, 400, 24


@dataclass(frozen=True)
class Bar:
    """The median of some rounds, with the lowest and the highest."""

    label: str
    low: float
    middle: float
    high: float
    ours: bool


def number(value: float) -> str:
    """Return a figure with three digits, or all digits of a large one."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def draw(title: str, bars: list[Bar]) -> str:
    """Return the chart: a bar for the median, a thin line from the lowest to the highest round."""
    top = max(bar.high for bar in bars) or 1.0
    width, height = LEFT + WIDTH + 100, 46 + STEP * len(bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>\n',
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>\n',
        f'<text x="12" y="22" font-size="14" font-weight="600" fill="#1f2937">{escape(title)}</text>\n',
    ]
    for index, bar in enumerate(bars):
        y = 36 + STEP * index
        low, middle, high = (max(0.0, value) * WIDTH / top for value in (bar.low, bar.middle, bar.high))
        parts.append(
            f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end" fill="#1f2937">{escape(bar.label)}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{middle:.1f}" height="15" fill="{"#0f766e" if bar.ours else "#9ca3af"}"/>'
            f'<path d="M{LEFT + low:.1f} {y + 7.5}H{LEFT + high:.1f}" stroke="#111827" stroke-width="1.5"/>'
            f'<text x="{LEFT + high + 6:.1f}" y="{y + 12}" fill="#374151">{number(bar.middle)}</text>\n'
        )
    return "".join([*parts, "</svg>\n"])
