"""Turn the JSON results into Markdown tables with ratios and spread, and SVG bar charts.

`python -m benchmarks.report [DIR]` writes report.md and *.svg next to the results; with `--docs` it also puts each table
between the marks `<!-- bench: PART -->` and `<!-- /bench -->` of docs/performance.md and docs/scaling.md, and the charts
into docs/images/. A ratio is that of the medians; its range is the lowest and highest ratio of any two rounds that were
run one after the other.
"""

import argparse
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import chart, model
from benchmarks.chart import Bar, number
from benchmarks.measures import COLUMNS, HOME, MEASURES, STORES, Measure, group, label
from benchmarks.suite import QUIET_OPTIONS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
PAGES = ("performance.md", "scaling.md")
MARKED = re.compile(r"<!-- bench: (\w+) -->\n.*?<!-- /bench -->", re.DOTALL)


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    label: str
    store: str
    case: dict[str, Any]
    rounds: list[dict[str, Any]]

    @property
    def ours(self) -> bool:
        return bool(self.case["peer"] == HOME)

    def values(self, figure: str) -> list[float]:
        return [each[figure] for each in self.rounds if each.get(figure) is not None]

    def median(self, figure: str) -> float | None:
        known = self.values(figure)
        return statistics.median(known) if known else None


def write(directory: Path) -> dict[str, str]:
    """Write report.md and the charts of all results in the directory; return the Markdown of each part."""
    parts: dict[str, str] = {}
    cases: list[dict[str, Any]] = []
    for name, measure in MEASURES.items():
        path = directory / f"{name}.json"
        if path.exists():
            data = json.loads(path.read_text())
            parts.setdefault("machine", _machine(data["machine"]))
            parts[name] = _measure(name, measure, data, directory)
            cases += data["cases"]
    parts["settings"] = _settings(cases)
    parts |= model.tables(directory)
    sections = [f"## {MEASURES[name].title if name in MEASURES else name.title()}\n\n{parts[name]}" for name in parts]
    target = directory / "report.md"
    target.write_text("# Benchmark\n\n" + "\n".join(sections))
    print(target)
    return parts


def put_into_docs(parts: dict[str, str], directory: Path) -> None:
    """Replace what stands between the marks, and the charts that these tables show."""
    images = DOCS / "images"
    for name in PAGES:
        page = DOCS / name
        text = MARKED.sub(lambda found: _marked(found, parts), page.read_text())
        page.write_text(text)
        for picture in re.findall(r"\(images/(bench-[\w-]+\.svg)\)", text):
            if (directory / picture).exists():
                (images / picture).write_text((directory / picture).read_text())
    shown = "".join((DOCS / name).read_text() for name in PAGES)
    for picture in images.glob("bench-*.svg"):
        if picture.name not in shown:
            picture.unlink()


def _marked(found: re.Match[str], parts: dict[str, str]) -> str:
    name = found[1]
    if name not in parts:
        return found[0]
    text = parts[name].replace("](bench-", "](images/bench-")
    return f"<!-- bench: {name} -->\n\n{text}\n<!-- /bench -->"


def _machine(machine: dict[str, Any]) -> str:
    servers = ", ".join(f"{name} {value}" for name, value in machine["servers"].items())
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB, {machine['system']},"
        f" Python {machine['python']}; {servers}.\n"
    )


def _measure(name: str, measure: Measure, data: dict[str, Any], directory: Path) -> str:
    """Return the tables of one part, one for each group of cases that are compared with each other."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in data["cases"]:
        groups.setdefault(group(name, case, QUIET_OPTIONS), []).append(case)
    texts = []
    for heading, cases in groups.items():
        lines = [Line(label(name, case), case["store"], case, case["rounds"]) for case in cases if case["rounds"]]
        if lines:
            texts.append(f"**{heading[0].upper()}{heading[1:]}**\n" if heading else "")
            texts.append(_table(measure, lines))
            texts += [_chart(name, measure, heading, figure, lines, directory) for figure in measure.charts]
        failed = [f"{label(name, case)} on {STORES[case['store']]}" for case in cases if case["errors"]]
        if failed:
            texts.append(f"Failed: {', '.join(failed)}.\n")
    what = "each line to the first of its store" if measure.base else "django_jobs to this line, above 1 is better"
    most = max((len(case["rounds"]) for case in data["cases"]), default=0)
    first, last = (pick((case["when"] for case in data["cases"]), default="") for pick in (min, max))
    when = first if first == last else f"{first} to {last}"
    about = data["machine"]
    texts.append(
        f"`python -m benchmarks.{name}`, medians of up to {most} rounds, in brackets the lowest and highest; ratio: {what}."
        f" Commit `{about['commit']}`, {when}, load average at the end {about['load_average']:.1f}.\n"
    )
    return "\n".join(text for text in texts if text)


def _table(measure: Measure, lines: list[Line]) -> str:
    """Return a Markdown table; figures that no line has are left out."""
    extra = [
        name for name in measure.extra if any(each.get(name) is not None for line in lines for each in line.rounds)
    ]
    head = ["", "store", COLUMNS.get(measure.figure, measure.figure), "ratio", *(COLUMNS.get(n, n) for n in extra)]
    rows = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for line in lines:
        values = line.values(measure.figure)
        figure = (
            f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})" if values else ""
        )
        name = f"**{line.label}**" if line.ours and not measure.base else line.label
        cells = [name, STORES[line.store], figure, _ratio(measure, line, lines), *(_middle(line, n) for n in extra)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _ratio(measure: Measure, line: Line, lines: list[Line]) -> str:
    home = _home(measure, line, lines)
    if home is None or home is line:
        return "1" if home is line else ""
    ours, theirs = home.values(measure.figure), line.values(measure.figure)
    upper, lower = (theirs, ours) if measure.base or not measure.more_is_better else (ours, theirs)
    each = [a / b for a, b in zip(upper, lower, strict=False) if b]
    if not each or not statistics.median(lower):
        return ""
    return f"{statistics.median(upper) / statistics.median(lower):.2f}× ({min(each):.2f} to {max(each):.2f})"


def _home(measure: Measure, line: Line, lines: list[Line]) -> Line | None:
    """Return the line that a line is compared with."""
    if measure.base is None:
        homes = {each.store: each for each in reversed(lines) if each.ours}
        return homes.get(line.store) or homes.get("postgresql")
    key, value = measure.base
    same = [each for each in lines if each.store == line.store]
    return next((each for each in same if each.case["options"].get(key) == value), same[0])


def _middle(line: Line, figure: str) -> str:
    words = [each[figure] for each in line.rounds if isinstance(each.get(figure), str)]
    if words:
        return words[0]
    value = line.median(figure)
    return "" if value is None else number(value)


def _chart(name: str, measure: Measure, heading: str, figure: str, lines: list[Line], directory: Path) -> str:
    """Write the chart and return the Markdown that shows it."""
    bars = []
    for line in lines:
        if values := line.values(figure):
            name_of_bar = f"{line.label.replace('`', '')} · {STORES[line.store]}"
            bars.append(Bar(name_of_bar, min(values), statistics.median(values), max(values), line.ours))
    if not bars:
        return ""
    unit = COLUMNS.get(figure, figure)
    title = f"{measure.title}: {', '.join(filter(None, (unit, heading)))}"
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {heading} {figure if len(measure.charts) > 1 else ''}".lower()).strip(
        "-"
    )
    (directory / f"bench-{slug}.svg").write_text(chart.draw(title, bars))
    return f"![{title}](bench-{slug}.svg)\n"


def _settings(cases: list[dict[str, Any]]) -> str:
    """Return the settings and versions of each queue."""
    rows: dict[str, str] = {}
    for case in cases:
        if "settings" in case and not case["options"].get("way"):
            versions = ", ".join(f"{name} {version}" for name, version in case.get("versions", {}).items())
            rows.setdefault(
                case["label"], f"| {case['label']} | `{case['settings']}` | `{case['bulk']}` | {versions} |"
            )
    head = ["| | settings | bulk submit | versions |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows.values()]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the tables and charts into docs/")
    options = parser.parse_args()
    parts = write(options.directory)
    if options.docs:
        put_into_docs(parts, options.directory)


if __name__ == "__main__":
    main()
