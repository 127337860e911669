"""Run measurements in interleaved rounds (A B C, A B C, …), each in a process of its own, and keep them as JSON."""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import stores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
QUIET_OPTIONS = (
    "jobs",
    "limit",
    "load",
    "seconds",
    "rows",
    "held",
    "claims",
    "rate",
)  # how much, not what, is measured


@dataclass(frozen=True)
class Case:
    """One line of a table: a peer on a store with the options of its measurement."""

    peer: str
    store: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.peer} on {self.store} ({shown})"


def end_in_order() -> None:
    """Let SIGTERM unwind this process, so that it takes its servers, hosts and workers with it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def arguments(description: str, **extra: Any) -> argparse.Namespace:
    """Parse the options that every benchmark has; `extra` names further integers with their defaults."""
    end_in_order()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=3, help="times each case is measured (default 3)")
    parser.add_argument("--peers", default="", help="comma-separated peers (default: all)")
    parser.add_argument("--stores", default="", help="comma-separated stores (default: all)")
    parser.add_argument("--only", default="", help="comma-separated words: cases whose options have one of them")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON results")
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"(default {default:,})")
    return parser.parse_args()


def chosen(cases: list[Case], options: argparse.Namespace) -> list[Case]:
    """Return the cases that --peers, --stores and --only ask for."""
    peers, places, words = (
        set(filter(None, given.split(","))) for given in (options.peers, options.stores, options.only)
    )
    return [
        case
        for case in cases
        if (not peers or case.peer in peers)
        and (not places or case.store in places)
        and (not words or any(word in str(case) for word in words))
    ]


def run(measure: str, cases: list[Case], options: argparse.Namespace) -> Path:
    """Measure all cases in interleaved rounds and return the file of results. A failed case is reported, not fatal."""
    began = datetime.now(UTC).isoformat(timespec="seconds")
    records: list[dict[str, Any]] = [
        asdict(case) | {"when": began, "rounds": [], "errors": []} for case in chosen(cases, options)
    ]
    for number in range(options.rounds):
        for record in records:
            if record["errors"]:
                continue
            started = time.monotonic()
            case = Case(record["peer"], record["store"], record["options"])
            try:
                outcome = _child(measure, case)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                record["errors"].append(str(error)[-3000:])
                reason = str(error).strip().rpartition("\n")[2]
                print(f"round {number + 1}  {case}: failed, see the results file: {reason[-300:]}", flush=True)
                continue
            record["rounds"].append(outcome["result"])
            record |= outcome["about"]
            shown = ", ".join(f"{key} {_short(value)}" for key, value in outcome["result"].items())
            print(f"round {number + 1}  {case}: {shown}  [{time.monotonic() - started:.1f} s]", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    target: Path = options.out / f"{measure}.json"
    records = _kept(target, records) + records
    target.write_text(json.dumps({"measure": measure, "machine": machine(), "cases": records}, indent=1) + "\n")
    print(f"{target}")
    return target


def _kept(target: Path, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cases of earlier runs that this run has not measured again."""
    if not target.exists():
        return []
    measured = [_what(record) for record in records]
    return [record for record in json.loads(target.read_text())["cases"] if _what(record) not in measured]


def _what(record: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return what a record measures, whatever its size."""
    options = {key: value for key, value in record["options"].items() if key not in QUIET_OPTIONS}
    return record["peer"], record["store"], options


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, memory, versions, settings of the servers, load."""
    model = next((x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), ":")
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": model.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory) / 2**20, 1),
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "servers": stores.versions(),
        "commit": stores.commit_of(ROOT),
    }


def _child(measure: str, case: Case, timeout: float = 600) -> dict[str, Any]:
    """Take one measurement in a fresh process and directory. Raises RuntimeError with the end of its output."""
    with tempfile.TemporaryDirectory(prefix="jobs-bench-") as directory:
        command = [sys.executable, "-m", "benchmarks.child", measure, case.peer, case.store, json.dumps(case.options)]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"BENCH_DIR": directory, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except BaseException:
                process.terminate()  # not killed: its workers are its own to stop
                raise
    for line in reversed(stdout.splitlines()):
        if line.startswith('{"result"'):
            return json.loads(line)  # type: ignore[no-any-return]
    raise RuntimeError(f"{case}: exit {process.returncode}\n{stdout[-1500:]}{stderr[-3000:]}")


def _short(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
