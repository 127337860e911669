"""Turn the JSON results into Markdown tables with ratios and spread, and one SVG bar chart each.

`python -m benchmarks.report [DIR]` writes report.md and *.svg next to the results. A ratio is that of the medians; its
range is the lowest and highest ratio of any two rounds that were run one after the other.
"""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

RESULTS = Path(__file__).resolve().parent / "results"
TITLES = {
    "drain": "Drain of no-op jobs, jobs/s",
    "submit": "Submit, jobs/s",
    "latency": "Idle pickup, ms",
    "io": "I/O jobs of 10 ms, jobs/s",
    "idle": "One idle worker process",
    "growth": "Growth: drain of no-op jobs, jobs/s",
}
# Per measure: the figure that is compared, whether more is better, and what else the table shows.
FIGURES: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "drain": ("jobs_per_second", True, ("worker_cpu_us", "server_cpu_us")),
    "submit": ("jobs_per_second", True, ()),
    "latency": ("from call p50 ms", False, ("from call p99 ms", "from commit p50 ms", "from commit p99 ms")),
    "io": ("jobs_per_second", True, ("of_ideal",)),
    "idle": ("pss_mib", False, ("rss_mib", "processes", "statements_per_second", "unit")),
    "growth": ("jobs_per_second", True, ()),
}
QUIET_OPTIONS = ("jobs", "limit", "load", "seconds", "rows")
IN_LABEL = ("job", "state")
REFERENCES = {"orm": "single", "copy": "bulk"}  # ways to submit that belong to another way's table
HOME = "django_jobs"


@dataclass(frozen=True)
class Line:
    """One line of a table and one bar."""

    label: str
    store: str
    rounds: list[float]
    extra: list[str]
    settings: str
    home: bool

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def write(directory: Path) -> Path:
    """Write report.md and the charts of all results in the directory, and return the report."""
    sections = []
    about = ""
    for measure in TITLES:
        path = directory / f"{measure}.json"
        if not path.exists():
            continue
        data = json.loads(path.read_text())
        about = about or _machine(data["machine"])
        sections.append(f"## {TITLES[measure]}\n\n{_measure(measure, data, directory)}")
    target = directory / "report.md"
    target.write_text("# Benchmark\n\n" + about + "\n" + "\n".join(sections))
    print(target)
    return target


def _machine(machine: dict[str, Any]) -> str:
    servers = ", ".join(f"{name} {value}" for name, value in machine["servers"].items())
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB, {machine['system']},"
        f" Python {machine['python']}; {servers}; load average at the end {machine['load_average']:.1f};"
        f" commit {machine['commit']}, {machine['when']}.\n"
    )


def _measure(measure: str, data: dict[str, Any], directory: Path) -> str:
    """Return the tables of one measure, one for each group of cases that are compared with each other."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in data["cases"]:
        shown = {key: value for key, value in case["options"].items() if key not in QUIET_OPTIONS}
        for key in IN_LABEL:
            shown.pop(key, None)
        if shown.get("way") in REFERENCES:
            shown["way"] = REFERENCES[shown["way"]]
        groups.setdefault(", ".join(f"{key} {value}" for key, value in shown.items()), []).append(case)
    parts = []
    for number, (group, cases) in enumerate(groups.items()):
        lines = [_line(measure, case) for case in cases if case["rounds"]]
        failed = [f"{case['peer']} on {case['store']}" for case in cases if case["errors"]]
        if lines:
            chart = f"{measure}-{number}.svg"
            (directory / chart).write_text(_chart(f"{TITLES[measure]} {group}", lines))
            heading = f"### {group}\n\n" if group else ""
            parts.append(f"{heading}{_table(measure, lines)}\n![{measure} {group}]({chart})\n")
        if failed:
            parts.append(f"Failed: {', '.join(failed)}.\n")
    return "\n".join(parts)


def _line(measure: str, case: dict[str, Any]) -> Line:
    figure, _, extra = FIGURES[measure]
    label = case.get("label", case["peer"])
    if case["options"].get("way") in REFERENCES:
        label = {"orm": "ORM create()", "copy": "COPY"}[case["options"]["way"]]
    for key in IN_LABEL:
        label += f" ({case['options'][key]})" if key in case["options"] else ""
    settings = case["settings"] if measure != "submit" else case["bulk"] if case["options"]["way"] == "bulk" else ""
    versions = ", ".join(f"{name} {version}" for name, version in case.get("versions", {}).items())
    return Line(
        label=label,
        store=case["store"],
        rounds=[each[figure] for each in case["rounds"]],
        extra=[_middle([each.get(name) for each in case["rounds"]]) for name in extra],
        settings=f"{settings} ({versions})".strip(),
        home=case["peer"] == HOME and case["options"].get("state", "empty") == "empty",
    )


def _table(measure: str, lines: list[Line]) -> str:
    """Return a Markdown table; the ratio is django_jobs to the line, on the line's own store or else on PostgreSQL."""
    figure, more_is_better, extra = FIGURES[measure]
    homes = {line.store: line for line in reversed(lines) if line.home}
    head = ["", "store", figure.replace("_", " "), "min to max", "ratio", *(name.replace("_", " ") for name in extra)]
    rows = ["| " + " | ".join([*head, "settings"]) + " |", "|" + " --- |" * (len(head) + 1)]
    for line in lines:
        spread = f"{_number(min(line.rounds))} to {_number(max(line.rounds))}"
        home = homes.get(line.store) or homes.get("postgresql")
        ratio = _ratio(line, home, more_is_better, growth=measure == "growth")
        cells = [line.label, line.store, _number(line.median), spread, ratio, *line.extra, line.settings]
        rows.append("| " + " | ".join(cells) + " |")
    what = "its rate to that of the empty table" if measure == "growth" else "django_jobs to this line, more is better"
    return "\n".join(rows) + f"\n\nRatio: {what}; in brackets the lowest and highest of the rounds.\n"


def _ratio(line: Line, home: Line | None, more_is_better: bool, *, growth: bool) -> str:
    if home is None or home is line:
        return "1" if home is line else ""
    upper, lower = (line, home) if growth or not more_is_better else (home, line)
    each = [a / b for a, b in zip(upper.rounds, lower.rounds, strict=False) if b]
    if not each or not lower.median:
        return ""
    return f"{upper.median / lower.median:.2f}x ({min(each):.2f} to {max(each):.2f})"


def _middle(values: list[Any]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return known[0] if isinstance(known[0], str) else _number(statistics.median(known))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _chart(title: str, lines: list[Line]) -> str:
    """Return a bar chart: a bar for the median, a thin line from the lowest to the highest round."""
    left, width, step = 250, 420, 24
    top = max(max(line.rounds) for line in lines) or 1.0
    height = 44 + step * len(lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>',
        f'<text x="8" y="20" font-size="14" font-weight="600" fill="#1f2937">{escape(title)}</text>',
    ]
    for number, line in enumerate(lines):
        y = 36 + step * number
        low, middle, high = (
            max(0.0, value) * width / top for value in (min(line.rounds), line.median, max(line.rounds))
        )
        colour = "#0f766e" if line.label.startswith(HOME) else "#9ca3af"
        parts.append(
            f'<text x="{left - 8}" y="{y + 12}" text-anchor="end" fill="#1f2937">{escape(f"{line.label} · {line.store}")}</text>'
            f'<rect x="{left}" y="{y}" width="{middle:.1f}" height="15" fill="{colour}"/>'
            f'<path d="M{left + low:.1f} {y + 7.5}H{left + high:.1f}" stroke="#111827" stroke-width="1.5"/>'
            f'<text x="{left + high + 6:.1f}" y="{y + 12}" fill="#374151">{_number(line.median)}</text>'
        )
    return "".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else RESULTS)
