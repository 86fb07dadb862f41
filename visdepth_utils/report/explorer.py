"""Outputs by depth for the explorer of report.html: kept by a notebook, read back by the report.

The report has neither the model nor the data. So a notebook keeps what a reader wants to look at,
the first samples of its table with their pictures, as ``explorer/<task>-<style>.json`` in the run.
"""

import base64
import io
import json
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from visdepth_utils.datasets import Sample
from visdepth_utils.store.files import rows_text, write_text

__all__ = ["keep_outputs", "read_outputs"]

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
    """Write the outputs of the first samples of each task and style, at every depth measured.

    Args:
        folder: Of the run.
        table: ``truncation_sweep`` or ``reasoning_sweep`` in one mode, all tasks together or one;
            rows of controls are left out. The largest depth is the full model's.
        samples: Where prompts and pictures come from; samples the table lacks do not matter.
        tokens: ``token_kl`` of the same samples and mode: its mean over an answer's tokens is shown
            in place of the first token's divergence, which says little about a long text.
        limit: Samples per task and style, the first ones of the table: none is picked by hand.

    Returns:
        The files written.

    Raises:
        ValueError: If a column is missing, modes are mixed, or a sample of the table is not among
            the samples.
    """
    if missing := _NEEDED - set(table.columns):
        names = ", ".join(sorted(missing))
        raise ValueError(f"table lacks column(s) {names}: pass what truncation_sweep returns")
    modes = {*table["mode"], *(() if tokens is None else tokens["mode"])}
    if len(modes) > 1:
        raise ValueError(f"modes {', '.join(sorted(modes))} are mixed: pass the rows of one")
    if tokens is not None:
        by = ["task", "sample", "depth"]
        table = table.join(tokens.groupby(by)["kl"].mean().rename("kl_tokens"), on=by)
    if "control" in table:
        table = table[table["control"] == ""]
    known = {(sample.task, sample.id): sample for sample in samples}  # ids are unique in a task
    files = []
    for (task, style), rows in table.groupby(["task", "style"], sort=False):
        chosen, size = [], 0
        for name in rows["sample"].drop_duplicates().head(limit):
            if (task, name) not in known:
                raise ValueError(f"sample {name!r} of task {task!r} is not among the samples given")
            one = _sample(known[task, name], rows[rows["sample"] == name].sort_values("depth"))
            size += len(json.dumps(one))
            if chosen and size > MAX_BYTES:
                break
            chosen.append(one)
        entry = {
            "task": task,
            "style": style,
            "mode": rows["mode"].iloc[0],
            "divergence": _DIVERGENCE.get(_column(rows), ""),
            "measured": int(rows["sample"].nunique()),
            "samples": chosen,
        }
        file = folder / "explorer" / f"{task}-{style}.json"
        write_text(file, rows_text([entry]))
        files.append(file)
    return files


def read_outputs(folder: Path) -> list[dict[str, Any]]:
    """What the page embeds: outputs cut into words, with those that changed.

    Args:
        folder: Of the run.

    Returns:
        One entry per task and style: ``name, mode, divergence, measured, samples``; a sample has
        ``prompt, reference, pictures, rows``, a row ``depth, words, added`` (places of words that
        the full model does not say), ``lost`` (places of the full model's words that are missing),
        ``score, kl``. Rows are sorted by depth, the last one is the full model's. Empty without
        files.

    Raises:
        ValueError: If a file is not what ``keep_outputs`` writes.
    """
    found = []
    for file in sorted((folder / "explorer").glob("*.json")):
        try:
            (entry,) = json.loads(file.read_text(encoding="utf-8"))
            found.append(_for_page(entry))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{file} is not readable ({type(error).__name__}: {error}): delete it and run again"
            ) from error
    return found


def _column(rows: pd.DataFrame) -> str:
    """The column with the divergence, or nothing."""
    return next((name for name in _DIVERGENCE if name in rows), "")


def _sample(sample: Sample, rows: pd.DataFrame) -> dict[str, Any]:
    """One sample with its outputs, plain values only."""
    column = _column(rows)
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


def _for_page(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a file, its outputs compared with the full model's."""
    plain = entry["style"] in ("", "direct")
    samples = []
    for sample in entry["samples"]:
        full = str(sample["rows"][-1][1] or "").split()
        rows = []
        for depth, output, score, kl in sample["rows"]:
            words = str(output or "").split()
            added, lost = _differences(words, full)
            rows.append(
                {
                    "depth": depth,
                    "words": words,
                    "added": added,
                    "lost": lost,
                    "score": score,
                    "kl": kl,
                }
            )
        kept = {name: sample[name] for name in ("sample", "prompt", "reference", "pictures")}
        samples.append({**kept, "rows": rows})
    return {
        "name": entry["task"] if plain else f"{entry['task']}, {entry['style']} chains",
        "mode": entry["mode"],
        "divergence": entry["divergence"],
        "measured": entry["measured"],
        "samples": samples,
    }


def _differences(words: list[str], full: list[str]) -> tuple[list[int], list[int]]:
    """Places of words that only the one, and only the other text has."""
    added: list[int] = []
    lost: list[int] = []
    for kind, a, b, c, d in SequenceMatcher(None, full, words, autojunk=False).get_opcodes():
        if kind != "equal":
            lost += range(a, b)
            added += range(c, d)
    return added, lost
