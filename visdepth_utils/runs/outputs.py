"""What a run keeps beside its tables: the samples taken, and outputs by depth for report.html.

A table's key holds the content hash of its task; ``selection/<task>-<hash>.json`` says what that
hash stands for: source, revision, split, prompt, seed, the samples taken and the rows skipped.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from visdepth_utils.common.files import rows_text, write_text
from visdepth_utils.data.samples import Sample

if TYPE_CHECKING:
    from visdepth_utils.data.tasks import Task


def keep_selection(folder: Path, task: "Task") -> dict[str, str]:
    """Write down what a task was made of: name of the file -> what it says in one line."""
    name = f"{task.name}-{task.content_hash[:12]}"
    facts = {"task": task.name, "content_hash": task.content_hash, "source": task.source}
    facts |= {"samples": [sample.id for sample in task.samples], **task.selection}
    text = json.dumps(facts, indent=1, ensure_ascii=False, default=str)
    write_text(folder / "selection" / f"{name}.json", text + "\n")
    shown = [f"{len(task)} samples of {task.source}"]
    shown += [f"{key} {facts[key]}" for key in ("revision", "split", "subset") if facts.get(key)]
    if skipped := facts.get("skipped"):
        shown.append(f"{len(skipped)} bad rows skipped")
    return {name: ", ".join(shown)}


MAX_SAMPLES = 12
MAX_BYTES = 300_000  # of a file; later samples are left out
SIDE = 320  # pixels; larger pictures are made smaller
_MAX_PNG = 20_000  # bytes; a picture with more is kept as JPEG
_NEEDED = {"sample", "task", "style", "mode", "depth", "output", "correct"}
_DIVERGENCE = {
    "kl_tokens": "mean divergence of the answer's tokens from the full model's, both reading the "
    "expected text, in nats",
    "kl": "divergence of the first answer token from the full model's, in nats",
    "kl_chain": "mean divergence of the chain's tokens from the full model's, both reading the "
    "full model's text, in nats",
}


def keep_outputs(
    folder: Path,
    table: pd.DataFrame,
    samples: Sequence[Sample],
    tokens: pd.DataFrame | None = None,
    limit: int = MAX_SAMPLES,
) -> list[Path]:
    """Write the outputs of the first samples of each task, style and mode, at every depth measured.

    Args:
        folder: Of the run.
        table: ``truncation_sweep`` or ``reasoning_sweep``, all tasks and modes together or one;
            rows of controls are left out. The largest depth is the full model's.
        samples: Where prompts and pictures come from; samples the table lacks do not matter.
        tokens: ``token_kl`` of the same samples: where it has a mode, its mean over an answer's
            tokens is shown in place of the first token's divergence, which says little about a
            long text.
        limit: Samples per file, the first ones of the table: none is picked by hand.

    Raises:
        ValueError: A column is missing, or a sample of the table is not given.
    """
    if missing := _NEEDED - set(table.columns):
        names = ", ".join(sorted(missing))
        raise ValueError(f"table lacks column(s) {names}: pass what truncation_sweep returns")
    if tokens is not None:
        by = ["task", "sample", "mode", "depth"]
        table = table.join(tokens.groupby(by)["kl"].mean().rename("kl_tokens"), on=by)
    if "control" in table:
        table = table[table["control"] == ""]
    known = {(sample.task, sample.id): sample for sample in samples}  # ids are unique in a task
    files = []
    for (task, style, mode), rows in table.groupby(["task", "style", "mode"], sort=False):
        chosen, size, column = [], 0, _column(rows)
        for name in rows["sample"].drop_duplicates().head(limit):
            if (task, name) not in known:
                raise ValueError(f"sample {name!r} of task {task!r} is not among the samples given")
            own = rows[rows["sample"] == name].sort_values("depth")
            one = _sample(known[task, name], own, column)
            size += len(json.dumps(one))
            if chosen and size > MAX_BYTES:
                break
            chosen.append(one)
        entry = {
            "task": task,
            "style": style,
            "mode": mode,
            "divergence": _DIVERGENCE.get(column, ""),
            "measured": int(rows["sample"].nunique()),
            "samples": chosen,
        }
        file = folder / "explorer" / f"{task}-{style}-{mode.replace(' ', '_')}.json"
        write_text(file, rows_text([entry]))
        files.append(file)
    return files


def _column(rows: pd.DataFrame) -> str:
    """The column with the divergence, or nothing."""
    return next((name for name in _DIVERGENCE if name in rows and rows[name].notna().any()), "")


def _sample(sample: Sample, rows: pd.DataFrame, column: str) -> dict[str, Any]:
    """One sample with its outputs, plain values only."""
    kept = rows[["depth", "output", "correct"]].assign(kl=rows[column] if column else None)
    return {
        "sample": sample.id,
        "prompt": sample.prompt,
        "reference": sample.reference,
        "pictures": [_picture(image) for image in sample.images],
        "rows": json.loads(kept.to_json(orient="values", double_precision=6)),
    }


def _picture(image: Image.Image) -> dict[str, Any]:
    """A picture as data URI, with its width in pixels."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    kind, data = "png", _encoded(small, "png", optimize=True)
    if len(data) > _MAX_PNG:
        kind, data = "jpeg", _encoded(small, "jpeg", quality=80)
    text = base64.b64encode(data).decode("ascii")
    return {"uri": f"data:image/{kind};base64,{text}", "width": small.width}


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
