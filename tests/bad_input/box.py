"""A good checkpoint, a good notebook and a finished run, from which bad inputs are made."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from visdepth_utils.common.files import REPO
from visdepth_utils.report.page import write_report
from visdepth_utils.runs.cache import step
from visdepth_utils.runs.run import Run
from visdepth_utils.runs.settings import check_settings

PARAMETERS = """model = "data/minivlm/base"
source = None
n_samples = 3
seed = 0
device = "auto"
dtype = "auto"
profile = "quick"
out_dir = None"""
VERDICT: dict[str, Any] = {
    "claim": "C1",
    "model": "tiny/llava",
    "verdict": "weaker",
    "effect": 0.1,
    "ci": [0.0, 0.2],
    "n_images": 3,
    "control_effect": 0.05,
    "notebook": "01_image_tokens_stabilise",
    "reason": "half of it",
    "details": [{"measure": "entropy", "estimate": 1.0, "lo": 0.5, "hi": 1.5}],
}


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: Of the case.
        bad: Given a box: the arguments of a command, or a call that is made in a command's place.
        names: The input, as the message must name it; ``{box}`` is the box's folder.
        mend: What the message must say to do about it.
        env: Variables of the environment.
    """

    name: str
    bad: Callable[["Box"], list[Any] | None]
    names: str
    mend: str
    env: tuple[tuple[str, str], ...] = ()


class Box:
    """A folder of its own with good inputs.

    Attributes:
        folder: It.
        model: A tiny checkpoint.
        notebooks: A folder with one notebook.
        done: A finished run, which must survive.
    """

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.model = folder, checkpoint
        self.notebooks, self.done = folder / "notebooks", folder / "done"
        self.notebooks.mkdir(parents=True)
        self.notebook("00_a.ipynb", PARAMETERS)
        self.file("file", "text")
        given = {"source": None, "n_samples": 3, "seed": 0, "device": "cpu", "dtype": "auto"}
        run = Run(self.done, check_settings(model=str(checkpoint), profile="quick", **given))
        run.record(VERDICT)
        step(self.done / "tables", "a", lambda: pd.DataFrame({"x": [1.0]}), {}, lambda _: None)
        write_report(self.done, [])

    def file(self, name: str, content: str | bytes) -> Path:
        """A file with this content."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def notebook(self, name: str, *cells: str) -> Path:
        """A notebook in the folder of notebooks, its first cell the parameters."""
        made = [nbformat.v4.new_code_cell(cell) for cell in cells]
        made[0].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=made), self.notebooks / name)
        return self.notebooks / name

    def reproduce(self, *options: Any, out: str = "done") -> list[Any]:
        """A run into the finished one, with these options after those that are well."""
        where = ["--out", self.folder / out] if out else []
        known = ["--model", self.model, "--notebooks", self.notebooks]
        return ["reproduce", *known, *where, *options]

    def spoilt(self, changes: dict[str, str | bytes | None], name: str = "spoilt") -> Path:
        """A copy of the checkpoint with files changed, or taken away."""
        copy = Path(shutil.copytree(self.model, self.folder / name))
        for file, content in changes.items():
            if content is None:
                (copy / file).unlink()
            else:
                self.file(f"{name}/{file}", content)
        return copy

    def config(self, **changes: Any) -> dict[str, str | bytes | None]:
        """Its config with other entries, for ``spoilt``."""
        config = json.loads((self.model / "config.json").read_text())
        text = changes.pop("text", {})
        return {
            "config.json": json.dumps(
                {**config, "text_config": {**config["text_config"], **text}, **changes}
            )
        }

    def load(self, changes: dict[str, str | bytes | None]) -> list[Any]:
        """A command that loads a spoilt checkpoint, weights and all."""
        out = self.folder / "accuracy.json"
        return ["eval-minivlm", self.spoilt(changes), "--n", 2, "--out", out]

    def run(self, claims: Any = None, provenance: str = "{}") -> Path:
        """A run with these files; a dictionary changes the good verdict."""
        if claims is None or isinstance(claims, dict):
            claims = json.dumps([{**VERDICT, **(claims or {})}])
        self.file("bad/claims.json", claims)
        self.file("bad/provenance.json", provenance)
        return self.folder / "bad"

    def finished(self) -> dict[str, str]:
        """Digest of every file that no bad input may change: a finished run, records, README."""
        kept = [*self.done.rglob("*"), *(REPO / "data" / "runs").rglob("*"), REPO / "README.md"]
        return {
            str(file): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(kept)
            if file.is_file()
        }
