"""Rows of a data set become Samples: the embedded worlds, or any folder of the same layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from visdepth_utils.data.images import BadRow, upright_rgb

WORLDS = Path(__file__).resolve().parents[2] / "data" / "worlds"
"""The embedded data sets, beside the package in the repository."""
WORLD_TASKS = ("mcq", "vqa", "chart", "caption", "reason")
LABELS = ("sample", "image", "task", "kind", "style")


@dataclass(frozen=True)
class Sample:
    """One question about zero, one or several images."""

    id: str  # unique within its task
    image_id: str  # names the picture(s); the unit of resampling in every confidence interval
    images: Sequence[Image.Image]  # RGB; empty for a blind sample, decoded at each access if large
    prompt: str  # what the user asks, without chat template
    reference: str  # the full expected text (for chains: with its steps)
    answer: str  # the short final answer that is scored
    task: str
    kind: str = ""  # type of question, e.g. "colour" or "count"
    style: str = "direct"  # or "short" or "long"
    choices: tuple[str, ...] = ()  # answer options; empty for an open question
    references: tuple[str, ...] = ()  # all accepted texts, where there are several (five captions)
    rule: str = ""  # scoring rule, where it is not the one of the task's name

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every text that an output is compared with; the best one counts."""
        return self.references or (self.reference,)

    def labels(self) -> dict[str, str]:
        """What every measured row says of its sample: ``sample, image, task, kind, style``."""
        values = (self.id, self.image_id, self.task, self.kind, self.style)
        return dict(zip(LABELS, values, strict=True))


class MissingTask(ValueError):
    """The data has no such task: what needs it cannot be tested, and nothing is broken."""


def is_worlds(folder: Path) -> bool:
    """Whether a folder has the layout of the embedded worlds: pictures in a table of their own."""
    return (folder / "images.parquet").is_file() or any(
        "image_id" in pq.read_schema(folder / f"{name}.parquet").names
        for name in WORLD_TASKS
        if (folder / f"{name}.parquet").is_file()
    )


def read_worlds(
    name: str, source: str | Path | None, style: str | None
) -> tuple[pd.DataFrame, Path]:
    """The question table of one task in file order, and the folder it came from.

    ``name`` is also that of the parquet file; ``source`` None is the embedded worlds; rows of
    another style are left out. MissingTask: the folder has no table of that name. ValueError: a
    column is missing, or no row has the style.
    """
    folder = Path(source) if source else WORLDS
    table = folder / f"{name}.parquet"
    if not table.is_file():
        held = [other for other in WORLD_TASKS if (folder / f"{other}.parquet").is_file()]
        raise MissingTask(
            f"the data in {folder} has no task {name!r} (it holds {', '.join(held) or 'none'}): "
            "give a source that has it"
        )
    rows = pd.read_parquet(table)
    missing = {"id", "image_id", "prompt", "reference", "answer"} - set(rows.columns)
    if missing:
        raise ValueError(f"{table} lacks the column(s) {', '.join(sorted(missing))}")
    if style is not None:
        styles = sorted(set(rows["style"])) if "style" in rows else []
        if style not in styles:
            raise ValueError(
                f"task {name!r} has no style {style!r}; it has {', '.join(styles) or 'none'}"
            )
        rows = rows[rows["style"] == style]
    return rows.reset_index(drop=True), folder


def choose(rows: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Choose n questions so that pictures (``image_id``) repeat as little as possible.

    They are taken in one random order, one question of each per round. A smaller n is a prefix of a
    larger one.
    """
    rng = np.random.default_rng(seed)
    shuffled = rows.iloc[rng.permutation(len(rows))]
    turn = shuffled.groupby("image_id", sort=False).cumcount()
    pictures = pd.unique(rows["image_id"])
    place = dict(zip(pictures[rng.permutation(len(pictures))], range(len(pictures)), strict=True))
    order = np.lexsort((shuffled["image_id"].map(place).to_numpy(), turn.to_numpy()))
    return shuffled.iloc[order[:n]].reset_index(drop=True)


def to_samples(rows: pd.DataFrame, folder: Path, task: str) -> list[Sample]:
    """Attach the pictures of ``images.parquet`` in the folder to question rows, in order.

    Samples of one picture share the decoded image. FileNotFoundError: no such file. ValueError
    names a sample whose picture is missing or cannot be decoded.
    """
    file = folder / "images.parquet"
    if not file.is_file():
        raise FileNotFoundError(
            f"task {task!r}: no file {file}; the pictures belong beside {task}.parquet"
        )
    table = pd.read_parquet(file, columns=["image_id", "image"])
    wanted = table[table["image_id"].isin(set(rows["image_id"]))]
    stored = dict(zip(wanted["image_id"], wanted["image"], strict=True))
    decoded: dict[str, Image.Image] = {}
    samples = []
    for row in rows.to_dict("records"):
        key = row["image_id"]
        if key not in decoded:
            decoded[key] = _decode(stored.get(key), str(row["id"]), key, file)
        choices = row.get("choices")
        samples.append(
            Sample(
                id=str(row["id"]),
                image_id=str(key),
                images=(decoded[key],),
                prompt=row["prompt"],
                reference=row["reference"],
                answer=row["answer"],
                task=task,
                kind=row.get("kind") or "",
                style=row.get("style") or "direct",
                choices=tuple(choices) if isinstance(choices, Sequence | np.ndarray) else (),
            )
        )
    return samples


def _decode(cell: dict | None, sample: str, image_id: str, file: Path) -> Image.Image:
    """PNG bytes of one picture -> RGB image; every failure names the sample."""
    if not cell or not cell.get("bytes"):
        raise ValueError(
            f"sample {sample!r}: image {image_id!r} is missing from {file}; restore that row"
        )
    try:
        return upright_rgb(cell["bytes"])
    except BadRow as error:
        raise ValueError(f"sample {sample!r}: image {image_id!r} in {file}: {error}") from error


def describe(samples: Sequence[Sample]) -> str:
    """Name a shard by its samples: ``sample 's0'`` or ``samples 's0' to 's15'``."""
    first, last = samples[0].id, samples[-1].id
    return f"sample {first!r}" if first == last else f"samples {first!r} to {last!r}"
