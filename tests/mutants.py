"""Plant the faults of ``mutants.yaml`` one by one, and see whether the tests notice: make mutants.

Faults are planted in a copy of the tree. A fault that no test notices is a survivor; it fails the
run unless docs/mutants.md says why it may live.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
FAULTS = Path(__file__).with_suffix(".yaml")
EXCUSES = ROOT / "docs" / "mutants.md"


def planted(fault: dict[str, Any], tree: Path) -> str:
    """The text of a file with the fault in it.

    Raises:
        ValueError: The old text is not there exactly once.
    """
    text = (tree / fault["file"]).read_text(encoding="utf-8")
    if (times := text.count(fault["old"])) != 1:
        where = f"{times} times in {fault['file']}"
        raise ValueError(
            f"{fault['name']}: its old text is {where}: bring {FAULTS.name} up to date"
        )
    return text.replace(fault["old"], fault["new"])


def excused(text: str) -> set[str]:
    """Names in docs/mutants.md, each with a reason behind it."""
    return set(re.findall(r"^- `([^`]+)`: \S", text, flags=re.M))


def passes(tree: Path, tests: list[str]) -> bool:
    """Whether these tests pass in the tree.

    Raises:
        RuntimeError: pytest could not run them.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode} on {tests}: {done.stdout[-2000:]}")
    return done.returncode == 0


def main(names: list[str]) -> int:
    """Plant all faults, or those named; 1 where one survives without a reason."""
    faults = yaml.safe_load(FAULTS.read_text(encoding="utf-8"))
    if unknown := set(names) - {fault["name"] for fault in faults}:
        raise ValueError(f"no fault called {', '.join(sorted(unknown))} in {FAULTS.name}")
    faults = [fault for fault in faults if not names or fault["name"] in names]
    known = excused(EXCUSES.read_text(encoding="utf-8"))
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / ROOT.name
        skip = shutil.ignore_patterns(".*", "results", "build", "__pycache__", "data", "notebooks")
        shutil.copytree(ROOT, tree, ignore=skip)
        for big in ("data", "notebooks"):  # read only
            (tree / big).symlink_to(ROOT / big)
        changed = {fault["name"]: planted(fault, tree) for fault in faults}
        every = sorted({test for fault in faults for test in fault["tests"]})
        if not passes(tree, every):
            raise RuntimeError("tests fail without any fault: mend that first")
        for fault in faults:
            file, name = tree / fault["file"], fault["name"]
            clean = file.read_text(encoding="utf-8")
            file.write_text(changed[name], encoding="utf-8")
            lives = passes(tree, fault["tests"])
            file.write_text(clean, encoding="utf-8")
            wrong += lives != (name in known)
            told = ", and docs/mutants.md says so" if name in known else ""
            print(f"{'SURVIVED' if lives else 'caught  '}  {name}{told}", flush=True)
    print(f"{len(faults)} faults planted, {wrong} not as docs/mutants.md says")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
