"""Make the virtual environment of the benchmark, outside the repository's own: `python benchmarks/setup_peers.py [DIR]`.

DIR is `.venv-bench` by default. Python 3.12 or newer, because django-ox asks for it; every peer then runs on the same.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).with_name("requirements-peers.txt")
NODE = Path(__file__).parent / "peers" / "node" / "package.json"


def make(directory: Path) -> Path:
    """Create or complete the environment and return its interpreter."""
    if sys.version_info < (3, 12):
        raise SystemExit("benchmarks need Python 3.12 or newer (django-ox does); start this with such an interpreter")
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS, "-e", ROOT], check=True)
    if shutil.which("npm"):
        (directory / "node").mkdir(exist_ok=True)
        shutil.copy(NODE, directory / "node")
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=directory / "node", check=True)
    else:
        print("npm is missing: graphile-worker and pg-boss are left out", file=sys.stderr)
    return python


if __name__ == "__main__":
    print(make(Path(sys.argv[1]) if sys.argv[1:] else ROOT / ".venv-bench"))
