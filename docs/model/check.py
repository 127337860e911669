#!/usr/bin/env python3
"""Check the models of this folder: each holds as a whole, and has a counterexample without any one of its guards.

python3 docs/model/check.py                           all models: what `.ci/run` does
python3 docs/model/check.py --faults 3 claim          one model, more faults: minutes, and gigabytes
python3 docs/model/check.py --show LOCK_IN_WAKE       the counterexample without a guard, step by step

Needs Debian's `spin` and a C compiler. Each model is compiled once; the guard that is taken out, and the number of faults, are
told to it when it runs, because compiling takes longer than most of the searches (and -O2 longer than it saves).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SPIN_FLAGS = ("-DSAFETY", "-DNOREDUCE", "-DCOLLAPSE", "-DVECTORSZ=2048", "-DMEMLIM=4000")
DEPTH = 50_000
SECONDS = 600


@dataclass(frozen=True)
class Found:
    """What a search came to: the promise that was broken, empty when none was; the states that it visited."""

    broken: str
    states: int
    seconds: float


def models() -> list[str]:
    """Return the names of the models."""
    return sorted(path.stem for path in HERE.glob("*.pml"))


def guards(model: str) -> dict[str, int]:
    """Return the guards of a model with the number of each, in the order of its source."""
    text = (HERE / f"{model}.pml").read_text()
    return {name: 1 << int(bit) for name, bit in re.findall(r"^#define ([A-Z_]+) \(1 << (\d+)\)", text, re.MULTILINE)}


def compile_model(model: str, folder: Path) -> Path:
    """Compile the search through a model's states; return the program."""
    folder.mkdir()
    for command in (
        ["spin", "-a", str(HERE / f"{model}.pml")],
        ["gcc", "-O0", "-w", *SPIN_FLAGS, "-o", "pan", "pan.c"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return folder / "pan"


def search(program: Path, faults: int, without: int = 0) -> Found:
    """Visit every state of a model, or those up to the first broken promise, which leaves a trail in a folder of its own."""
    folder = program.parent / f"{without}-{faults}"
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    command = [str(program), f"-m{DEPTH}", "-E"]  # -E: processes that wait for more work are no deadlock
    output = subprocess.run(
        command, cwd=folder, env=_environment(faults, without), capture_output=True, text=True, timeout=SECONDS
    ).stdout
    states = re.search(r"^ *(\S+) states, stored", output, re.MULTILINE)
    broken = re.search(r"^pan:\d+: (.*?) \(at depth", output, re.MULTILINE)
    if not states or "max search depth too small" in output or "out of memory" in output:
        sys.exit(f"the search was not finished\n{output[-2000:]}")
    return Found(broken[1] if broken else "", int(float(states[1])), time.monotonic() - started)


def faults_of(name: str) -> int:
    """Return how many faults a run of a model has, or after how many a guard is needed, as its row in README.md says."""
    row = re.search(rf"^\| `{re.escape(name)}` \|(?:[^|]*\|)? (\d+) \|", (HERE / "README.md").read_text(), re.MULTILINE)
    if row is None:
        sys.exit(f"{name} has no row in {HERE / 'README.md'}")
    return int(row[1])


def check(model: str, faults: int | None, folder: Path) -> list[str]:
    """Check a model with and without its guards, print what came of it, and return what is wrong."""
    started = time.monotonic()
    program = compile_model(model, folder / model)
    compiled = time.monotonic() - started
    print(f"{model}: compiled in {compiled:.0f} s", flush=True)
    wrong: list[str] = []
    faults = faults_of(f"{model}.pml") if faults is None else faults
    whole = search(program, faults)
    print(f"{model}: {whole.states:,} states with {faults} faults, {whole.seconds:.1f} s {whole.broken}", flush=True)
    if whole.broken:
        wrong.append(f"{model}: {whole.broken}")
    for name, number in guards(model).items():
        found = search(program, faults_of(name), number)
        how = "broken" if found.broken else "NO COUNTEREXAMPLE"
        spent = f"{faults_of(name)} faults, {found.states:,} states, {found.seconds:.1f} s"
        print(f"{model}: without {name}: {how}, {spent}", flush=True)
        if not found.broken:
            wrong.append(f"{model}: without {name} every promise holds")
    return wrong


def show(name: str) -> int:
    """Print the counterexample without a guard, as the lines of the model that it runs through."""
    model = next((one for one in models() if name in guards(one)), None)
    if model is None:
        sys.exit(f"no model has a guard {name}")
    lines = (HERE / f"{model}.pml").read_text().splitlines()
    faults, number = faults_of(name), guards(model)[name]
    with tempfile.TemporaryDirectory() as folder:
        program = compile_model(model, Path(folder) / model)
        found = search(program, faults, number)
        output = subprocess.run(
            [str(program), "-r", f"{model}.pml.trail"],
            cwd=program.parent / f"{number}-{faults}",
            env=_environment(faults, number),
            capture_output=True,
            text=True,
        ).stdout
    last = None
    for process, kind, line in re.findall(r"proc +(\d+) \((\w+)\) \S*:(\d+) \(state \d+\)\t", output):
        if (process, line) != last:
            print(f"{kind:>9} {process:>2}  {line:>4}  {lines[int(line) - 1].strip()}")
        last = process, line
    print(f"\nbroken: {found.broken}")
    return 0 if found.broken else 1


def _environment(faults: int, without: int) -> dict[str, str]:
    return {**os.environ, "FAULTS": str(faults), "WITHOUT": str(without)}


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(description="Check the models.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(models())}; all without any")
    parser.add_argument("--faults", type=int, help="how many faults a run of the whole model may meet")
    parser.add_argument("--show", metavar="GUARD", help="print the counterexample without this guard")
    options = parser.parse_args()
    if options.show:
        return show(options.show)
    chosen = options.models or models()
    if unknown := sorted(set(chosen) - set(models())):
        parser.error(f"no model {', '.join(unknown)}; there are {', '.join(models())}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        wrong = [
            line for lines in pool.map(lambda one: check(one, options.faults, Path(folder)), chosen) for line in lines
        ]
    print("\n".join(wrong) or "every promise holds, and no guard can be missed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
