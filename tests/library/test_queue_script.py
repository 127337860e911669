"""The script in the guide runs as it is printed there."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT

GUIDE = ROOT / "docs" / "guide" / "library.md"


def test_the_script_of_the_guide_runs_without_any_worker_command(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(script.splitlines()) <= 32
    (tmp_path / "script.py").write_text(script)
    ran = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "sent to ada@example.org\n285 10\n"), ran.stderr
    assert ran.stderr == ""
