"""Run the whole benchmark, or parts of it, and write the report: `python -m benchmarks.run [--quick] [drain submit …]`.

Makes the environment of the peers when it is missing and goes on in it, so that this is the one command. `--set` goes on to
the parts, which must know it: `python -m benchmarks.run growth --set held=600`.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import report, setup_peers

ROOT = Path(__file__).resolve().parent.parent
# Most telling first: a run that is cut short has the figures that matter.
PARTS = (
    "drain",
    "latency",
    "submit",
    "io",
    "growth",
    "snapshot",
    "pressure",
    "claim",
    "graph",
    "retries",
    "idle",
    "machines",
    "waiting",
    "servers",
    "tuning",
)
QUICK = {
    "drain": ["--limit", "2", "--jobs", "2000"],
    "submit": ["--single", "100", "--bulk", "2000"],
    "latency": ["--jobs", "40"],
    "io": ["--limit", "2", "--jobs", "1000"],
    "idle": ["--seconds", "5"],
    "retries": ["--jobs", "500"],
    "graph": ["--jobs", "500", "--limit", "10"],
    "growth": ["--scale", "1", "--jobs", "2000", "--held", "3"],
    "snapshot": ["--scale", "1", "--jobs", "2000"],
    "pressure": ["--seconds", "4"],
    "claim": ["--scale", "10", "--claims", "200"],
    "machines": ["--scale", "1", "--jobs", "4000", "--limit", "5"],
    "waiting": ["--seconds", "5"],
    "servers": ["--jobs", "4000", "--waiting", "8000"],
    "tuning": ["--scale", "1", "--seconds", "6"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], default=[], metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-bench", help="environment of the peers")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for results and report"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default="", help="comma-separated peers")
    parser.add_argument("--stores", default="", help="comma-separated stores")
    parser.add_argument("--only", default="", help="comma-separated words: cases whose options have one of them")
    parser.add_argument("--quick", action="store_true", help="one round of everything, small: does it run?")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=NUMBER", help="an option of the part")
    options = parser.parse_args()
    python = options.venv / "bin" / "python"
    if Path(sys.prefix).resolve() != options.venv.resolve():
        if not python.exists():
            setup_peers.make(options.venv)
        os.execv(python, [str(python), "-m", "benchmarks.run", *sys.argv[1:]])
    shared = ["--rounds", "1" if options.quick else str(options.rounds), "--out", str(options.out.resolve())]
    shared += ["--peers", options.peers, "--stores", options.stores, "--only", options.only]
    for part in options.parts or PARTS:
        own = [*(QUICK[part] if options.quick else []), *(f"--{one}" for one in options.set)]
        command = [sys.executable, "-m", f"benchmarks.{part}", *shared, *own]
        subprocess.run(command, cwd=ROOT, check=True)
    report.write(options.out)


if __name__ == "__main__":
    main()
