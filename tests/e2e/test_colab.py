"""Colab, imitated: notebooks alone in an empty folder, a Python that has only torch and numpy.

The new environment shares with the one that runs the tests what Colab has anyway and what is large:
torch, numpy, torchvision (if it is here), ipykernel, matplotlib, pandas, pyarrow, scipy, numba and
scikit-learn, with what these need. The rest comes by pip, as on Colab, from wherever pip is
configured to look. The versions are those of constraints.txt, so that a release of tomorrow fails
no test of today; torch and numpy are left out of it, because that these stay is what is tested.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.address import repository

ROOT = Path(__file__).resolve().parents[2]
SHARED = ("torch", "torchvision", "numpy", "ipykernel")
SHARED += ("matplotlib", "pandas", "pyarrow", "scipy", "numba", "scikit-learn")
TESTED = ("torch", "torchvision", "numpy")


def needed(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """Distributions that are installed here, with all they need."""
    found: dict[str, metadata.Distribution] = {}
    todo = list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        wanted = map(Requirement, found[name].requires or ())
        # One that is asked for with an extra (cuda-toolkit[...]) brings what its extras name.
        extras = [
            {"extra": extra} for extra in ("", *found[name].metadata.get_all("Provides-Extra", ()))
        ]
        inside = extras if name.startswith(("cuda", "nvidia")) else extras[:1]
        todo += [
            one.name for one in wanted if not one.marker or any(map(one.marker.evaluate, inside))
        ]
    return found


def share(folder: Path) -> None:
    """Links to the files of the shared distributions; pip installs beside them, never into them."""
    folder.mkdir()
    for one in needed(SHARED).values():
        site = Path(str(one.locate_file("")))
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(site / top)


def git(*arguments: str | Path) -> None:
    subprocess.run(["git", *map(str, arguments)], check=True, capture_output=True)


def origin(folder: Path) -> Path:
    """A bare repository of the working tree as it is, also where that is no checkout."""
    git("init", "-q", "--bare", "-b", "main", folder)
    here = (f"--git-dir={folder}", f"--work-tree={ROOT}", "-c", "core.bare=false")
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "gc.auto=0")
    git(*here, "add", "--all", ROOT)
    git(*here, *who, "commit", "-q", "-m", "as it is")
    return folder


class Colab:
    """A machine: its Python, its environment variables, its repository."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python = folder, folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        share(folder / "base")
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "base.pth").write_text(f"{folder / 'base'}\n")
        (site / "google" / "colab").mkdir(parents=True)
        (site / "google" / "colab" / "__init__.py").write_text("")
        startup = folder / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "00-colab.py").write_text("import google.colab\n")
        kernel = folder / "jupyter" / "kernels" / "colab"
        kernel.mkdir(parents=True)
        argv = [str(self.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        (kernel / "kernel.json").write_text(json.dumps(spec))
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        free = [line for line in lines if line.partition("==")[0] not in TESTED]
        (folder / "versions.txt").write_text("\n".join(free))
        ours = ("VISDEPTH_", "JUPYTER", "PYTHONPATH", "VIRTUAL_ENV", "MPLBACKEND", "PYTEST")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        also = os.environ.get("PIP_CONSTRAINT", "")
        self.env |= {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "IPYTHONDIR": str(folder / "ipython"),
            "HF_HUB_OFFLINE": "1",
            "PIP_CONSTRAINT": f"{also} {folder / 'versions.txt'}".strip(),
            "PIP_NO_COMPILE": "1",  # Python compiles what is imported, pip would compile all of it
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{origin(folder / 'origin.git')}.insteadOf",
            "GIT_CONFIG_VALUE_0": repository(),
        }

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        call = [self.python, "-m", "pip", *arguments]
        return subprocess.run(call, env=self.env, capture_output=True, text=True, timeout=300)

    def versions(self) -> dict[str, str]:
        """What `pip list` says."""
        rows = json.loads(self.pip("list", "--format=json").stdout)
        return {row["name"].lower(): row["version"] for row in rows}

    def execute(self, name: str, n: int, place: Path) -> nbformat.NotebookNode:
        """Run a notebook that lies alone in an empty folder."""
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", place)
        book = nbformat.read(place / f"{name}.ipynb", as_version=4)
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                lines = cell.source.splitlines()
                (old,) = [line for line in lines if line.startswith("n_samples = ")]
                cell.source = cell.source.replace(old, f"n_samples = {n}")
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        resources = {"metadata": {"path": str(place)}}
        client = NotebookClient(book, kernel_name="colab", timeout=600, resources=resources)
        return client.execute(env=self.env)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Colab]:
    made = Colab(tmp_path_factory.mktemp("colab"))
    probe = made.pip("install", "-q", "--dry-run", "--no-deps", "--retries", "1", "num2words")
    if probe.returncode:
        said = (probe.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        reason = f"pip reaches no package index from here ({said})"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(made.folder / "jupyter"))
        yield made


def last_code(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return [cell for cell in book.cells if cell.cell_type == "code"][-1]


def shown(cell: nbformat.NotebookNode) -> str:
    return "".join(item.get("text", "") for item in cell.outputs if item.output_type == "stream")


def test_a_notebook_starts_from_nothing(machine: Colab, tmp_path: Path) -> None:
    before = machine.versions()
    kept = {name: before[name] for name in TESTED if name in before}
    assert {"torch", "numpy"} <= set(kept)
    for name in ("transformers", "peft", "accelerate", "papermill", "visdepth-utils"):
        assert name not in before
    start = tmp_path / "00"
    start.mkdir()
    book = machine.execute("00_start_here", 4, start)
    (cell,) = [cell for cell in book.cells if "google.colab" in cell.source]
    said = shown(cell)
    assert "visdepth is installed; as they were: torch==" in said
    assert "error" not in said.lower()
    assert "full" in shown(last_code(book)) and "blind" in shown(last_code(book))
    after = machine.versions()
    assert {name: after[name] for name in kept} == kept
    assert {"transformers", "peft", "accelerate", "visdepth-utils"} <= set(after)
    assert (start / "visdepth" / "results" / "base-quick-n4" / "provenance.json").is_file()

    # A claim, in another empty folder and from an address of the user's own.
    claim = tmp_path / "01"
    claim.mkdir()
    fork = machine.folder / "fork.git"
    shutil.copytree(machine.folder / "origin.git", fork)
    machine.env["VISDEPTH_REPO"] = fork.as_uri()
    book = machine.execute("01_image_tokens_stabilise", 4, claim)
    assert last_code(book).execution_count and last_code(book).outputs
    (entry,) = json.loads(
        (claim / "visdepth" / "results" / "base-quick-n4" / "claims.json").read_text()
    )
    assert (entry["claim"], entry["n_images"]) == ("C1", 4)
    remote = ["git", "-C", claim / "visdepth", "remote", "get-url", "origin"]
    assert subprocess.check_output(remote, text=True).strip() == fork.as_uri()
    assert {name: machine.versions()[name] for name in kept} == kept
