"""Install what this checkout needs into a Python that has its own torch and numpy, as Colab has.

Run as a file by the first cell of every notebook: nothing of the package can be imported yet.
``pyproject.toml`` is the list. What is there in a version that fits stays; what is missing comes by
pip, which may not touch the packages of ``STAYS``: Colab's torch fits its drivers, and its running
kernel has numpy loaded.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

STAYS = ("torch", "torchvision", "torchaudio", "numpy", "ipykernel")
"""Never changed where they are installed; the last one is the kernel that runs the cell."""


class Plan(NamedTuple):
    """What pip is told: constraints, requirements not met, and in words what stays though unfit."""

    keep: list[str]
    install: list[str]
    old: list[str]


def plan(requirements: Sequence[str], installed: Mapping[str, str]) -> Plan:
    """Compare ``requirements`` with what is ``installed`` (canonical name -> version)."""
    install, old = [], []
    for line in requirements:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        there = installed.get(name)
        if there and wanted.specifier.contains(there, prereleases=True):
            continue
        if there and name in STAYS:
            old.append(f"{name} {there} stays, made for {wanted.specifier}")
        else:
            install.append(line)
    keep = [f"{name}=={installed[name]}" for name in STAYS if name in installed]
    return Plan(keep, install, old)


def installed_versions() -> dict[str, str]:
    """What this Python can import, by canonical name; of two versions the one found first."""
    found: dict[str, str] = {}
    for item in distributions():
        if name := item.metadata["Name"]:
            found.setdefault(canonicalize_name(name), item.version)
    return found


def install(checkout: Path) -> None:
    """Install the needs of a checkout, then itself, and say what stayed.

    SystemExit: pip failed (what it said stands above), or changed what was to stay.
    """
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    todo = plan(project["dependencies"], installed_versions())
    for line in todo.old:
        print(f"note: {line}")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "keep.txt"
        constraints.write_text("".join(f"{line}\n" for line in todo.keep), encoding="utf-8")
        if todo.install:
            _pip("-c", str(constraints), *todo.install)
        _pip("-c", str(constraints), "--no-deps", "-e", str(checkout))
    after = installed_versions()
    if moved := [line for line in todo.keep if line != _pinned(line.partition("==")[0], after)]:
        raise SystemExit(f"error: pip changed {', '.join(moved)}: restart the runtime, run again")
    print(f"visdepth is installed; as they were: {', '.join(todo.keep)}")


def _pinned(name: str, versions: Mapping[str, str]) -> str:
    return f"{name}=={versions.get(name)}"


def _pip(*arguments: str) -> None:
    """With the machine's own configuration of pip, in the Python that runs this."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-input", *arguments]
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if subprocess.run(command, env=env, check=False).returncode:
        raise SystemExit("error: pip could not install what is missing: see its lines above")


if __name__ == "__main__":
    install(Path(__file__).resolve().parents[2])
