"""Draw the samples of a soak as curves: `python -m benchmarks.curves SAMPLES.jsonl TITLE > docs/images/soak.svg`."""

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

FIGURES = {
    "megabytes": "memory of the survivor, MB",
    "threads": "its threads",
    "descriptors": "its open descriptors",
    "sessions": "sessions on the server",
    "rows": "rows of jobs and batches",
    "table_mb": "our tables, MB",
    "index_mb": "their indexes, MB",
}
WIDTH, HEIGHT, LEFT, GAP = 620, 70, 70, 40


def draw(samples: list[dict[str, float]], title: str) -> str:
    """Return one small chart a figure, each from zero to its highest value, over the same seconds."""
    shown = [name for name in FIGURES if any(sample[name] for sample in samples)]
    last = samples[-1]["seconds"] or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {40 + len(shown) * (HEIGHT + GAP)}"'
        f' role="img" font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>\n'
        '<rect width="100%" height="100%" rx="6" fill="#ffffff"/>\n'
        f'<text x="12" y="22" font-size="14" font-weight="600" fill="#1f2937">{escape(title)}, {last:,.0f} s</text>\n'
    ]
    for number, name in enumerate(shown):
        top = 60 + number * (HEIGHT + GAP)
        highest = max(sample[name] for sample in samples)
        points = " ".join(
            f"{LEFT + sample['seconds'] * WIDTH / last:.1f},{top + HEIGHT - sample[name] * HEIGHT / highest:.1f}"
            for sample in samples
        )
        parts.append(
            f'<text x="{LEFT}" y="{top - 6}" fill="#1f2937">{escape(FIGURES[name])}</text>'
            f'<text x="{LEFT - 8}" y="{top + 10}" text-anchor="end" fill="#374151">{highest:g}</text>'
            f'<text x="{LEFT - 8}" y="{top + HEIGHT}" text-anchor="end" fill="#374151">0</text>'
            f'<path d="M{LEFT} {top}V{top + HEIGHT}H{LEFT + WIDTH}" fill="none" stroke="#9ca3af"/>'
            f'<polyline points="{points}" fill="none" stroke="#0f766e" stroke-width="1.2"/>\n'
        )
    return "".join([*parts, "</svg>\n"])


def main() -> None:
    path, title = sys.argv[1:]
    lines = Path(path).read_text().splitlines()
    sys.stdout.write(draw([json.loads(line) for line in lines], title))


if __name__ == "__main__":
    main()
