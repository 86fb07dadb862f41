"""Samples of data sets in a known format: n rows are chosen and checked, pictures stay on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from visdepth_utils.data.formats import FORMATS, Format, Said, detect
from visdepth_utils.data.images import BadRow, Pictures, picture_cells
from visdepth_utils.data.open_dataset import open_rows
from visdepth_utils.data.records import Rows
from visdepth_utils.data.samples import MissingTask, Sample, choose

if TYPE_CHECKING:
    from visdepth_utils.models.vlm import VLM

ON_BAD_ROW = ("stop", "skip")


def load_samples(
    name: str,
    source: str | Path | None,
    n: int | None,
    seed: int,
    *,
    split: str | None = None,
    subset: str | None = None,
    prompt: str | None = None,
    on_bad_row: str = "stop",
    vlm: VLM | None = None,
) -> tuple[list[Sample], int, dict[str, Any]]:
    """Choose samples of a data set and check each of them; see ``load_task``.

    ``name`` is a data set, or a task that the data is asked to fill. A smaller n is a prefix of a
    larger one, also with rows skipped. ``split`` and ``subset``: see ``open_rows``; a subset that
    is no configuration is the kind of question to keep (ChartQA: ``human``, ``augmented``).
    ``prompt``: template in the place of the format's. ``on_bad_row``: ``"stop"``, or ``"skip"``:
    say which rows are bad and go on with others. With ``vlm``, a row that this model cannot take is
    a bad one.

    Returns:
        The samples, the budget of an answer, and the selection, for the record: where from (with
        revision, split, subset), prompt, rule, seed, row numbers, rows skipped and why.

    Raises:
        MissingTask: The data cannot fill the task.
        FileNotFoundError: No such data.
        ValueError: Columns that fit no format, a bad setting, fewer rows than n.
        BadRow: A chosen row that makes no sample, by its number.
    """
    if on_bad_row not in ON_BAD_ROW:
        raise ValueError(f"unknown on_bad_row {on_bad_row!r}: choose {' or '.join(ON_BAD_ROW)}")
    rows, known, rule = _opened(name, source, split, subset)
    form = FORMATS[known]
    template = prompt or form.of(form.prompt, name)
    index = _index(rows, form, name, None if rows.facts.get("subset") == subset else subset)
    if index.empty:
        raise _missing(name, rows, f"{form.title} rows, none of this task with a picture")

    def make(i: int) -> Sample:
        said = form.read(rows[i])
        pictures = Pictures(rows, i, form.images, rows.base)
        if not pictures and not form.blind:
            raise BadRow("it has no picture: give one")
        for _ in pictures:  # decoded once, to know now and not in the middle of a run
            pass
        text = _filled(template, said.words)
        label = {"task": name, "kind": said.kind, "choices": said.choices, "rule": rule}
        texts = {"answer": said.answer, "reference": said.answer, "references": said.references}
        number = i + rows.first
        sample = Sample(f"{known}-{number:05d}", images_of[i], pictures, text, **texts, **label)
        if vlm:
            vlm.encode([sample])
        return sample

    images_of = dict(zip(index["row"], index["image_id"], strict=True))
    asked = len(index) if n is None else n
    if not 1 <= asked <= len(index):
        raise ValueError(
            f"n={n} samples of {name!r} asked for, {rows.where} has {len(index)}: change n"
        )
    order = index if n is None else choose(index, len(index), seed)
    samples, skipped = _good(order["row"], make, rows, on_bad_row, asked)
    if len(samples) < (1 if n is None else n):
        raise ValueError(
            f"n={asked} samples of {name!r} asked for, {rows.where} has {len(samples)} good rows"
        )
    selection = {**rows.facts, "format": known, "prompt": template, "rule": rule, "seed": seed}
    selection |= {"samples": [sample.id for sample in samples], "skipped": skipped}
    return samples, form.of(form.budget, name), selection


def check_task(name: str, source: str | Path) -> None:
    """Find out whether data can fill a task, by their text: no picture is read.

    MissingTask: they cannot. FileNotFoundError: no such data. ValueError: columns of no format.
    """
    rows, known, _ = _opened(name, source)
    form, data = FORMATS[known], rows.data
    if not isinstance(data, list):
        data = data.remove_columns([column for column in form.images if column in rows.columns])
    texts = (row for row in replace(rows, data=data) if row is not None)
    if name not in FORMATS and not any(form.role(row) in ("", name) for row in texts):
        raise _missing(name, rows, f"{form.title} rows, none of this task with a picture")


def _opened(
    name: str, source: str | Path | None, split: str | None = None, subset: str | None = None
) -> tuple[Rows, str, str]:
    """Rows of a format that can fill the task, its name, and the rule that scores the task."""
    where = FORMATS[name].hub if source is None else source
    rows = open_rows(where, _usual(name, where), split, subset)
    known = name if name in FORMATS else detect(rows.columns)
    _check_columns(rows, name, known)
    rule = FORMATS[known].rules.get(name)
    if rule is None:
        raise _missing(name, rows, f"{FORMATS[known].title} rows")
    return rows, known, rule


def _usual(name: str, where: str | Path) -> Callable[[Sequence[str]], tuple[str | None, ...]]:
    """Split and subset of the format that is asked for, is known by its id, or has the columns."""
    hub = str(where).partition("@")[0]
    by_id = next((key for key, form in FORMATS.items() if form.hub == hub), None)

    def prefer(columns: Sequence[str]) -> tuple[str | None, str | None]:
        known = name if name in FORMATS else by_id or detect(columns)
        return (FORMATS[known].split, FORMATS[known].subset) if known else (None, None)

    return prefer


def _check_columns(rows: Rows, name: str, known: str | None) -> None:
    """Name the columns that are missing."""
    has = ", ".join(rows.columns) or "no columns"
    if known is None:
        wanted = FORMATS["table"].columns[0]
        lacking = ", ".join(sorted(set(wanted) - set(rows.columns)))
        raise ValueError(
            f"{rows.where} has the columns {has}: no known format; as a table of your own it lacks "
            f"{lacking}"
        )
    if not FORMATS[known].fits(rows.columns):
        nearest = min(FORMATS[known].columns, key=lambda names: len(set(names) - set(rows.columns)))
        lacking = ", ".join(column for column in nearest if column not in rows.columns)
        raise ValueError(f"{rows.where} has the columns {has}: as {name} it lacks {lacking}")


def _missing(name: str, rows: Rows, held: str) -> MissingTask:
    source = rows.facts["source"]
    return MissingTask(
        f"the data in {source} has no task {name!r} (it holds {held}): give a source that has it"
    )


def _index(rows: Rows, form: Format, name: str, kind: str | None) -> pd.DataFrame:
    """One pass over all rows: which of them are asked for, and which show the same pictures.

    Two rows have one ``image_id`` if their pictures have the same bytes (or paths): what is
    resampled in every interval. A bad row stays in, to be named when it is chosen; a line that
    cannot be read at all does where other rows are of the task.
    """
    found, kinds = [], set()
    for i, row in enumerate(rows):
        said = _said(form, row)
        role = form.role(row) if row is not None and name not in FORMATS else ""
        if said is not None:
            kinds.add(said.kind)
        if role not in ("", name) or (said and kind not in (None, said.kind)):
            continue
        cells = picture_cells(row or {}, form.images)
        if form.blind and not cells and name not in FORMATS and row is not None:
            continue  # a claim about image tokens has no use for a row without picture
        image = _image_id(cells) or f"row-{i + rows.first}"
        found.append({"row": i, "image_id": image, "read": row is not None})
    if kind is not None and kind not in kinds:
        raise ValueError(f"{rows.where} has no subset {kind!r}: it has {', '.join(sorted(kinds))}")
    index = pd.DataFrame(found, columns=["row", "image_id", "read"])
    return index if index["read"].any() else index.iloc[:0]


def _said(form: Format, row: dict[str, Any] | None) -> Said | None:
    try:
        return form.read(row) if row is not None else None
    except BadRow:
        return None


def _image_id(cells: Sequence[Any]) -> str:
    digest = sha256()
    for cell in cells:
        stored = (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell
        part = stored if isinstance(stored, bytes) else str(stored).encode()
        digest.update(f"{len(part)}:".encode() + part)
    return f"image-{digest.hexdigest()[:16]}" if cells else ""


def _filled(template: str, words: dict[str, str]) -> str:
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"prompt {template!r} cannot be filled ({error!r}): its fields are "
            f"{', '.join(f'{{{word}}}' for word in words) or 'none'}"
        ) from error


def _good(
    order: Iterable[int], make: Callable[[int], Sample], rows: Rows, on_bad_row: str, n: int
) -> tuple[list[Sample], dict[str, str]]:
    """The first n rows that make a sample, and what is wrong with those passed over."""
    samples: list[Sample] = []
    skipped: dict[str, str] = {}
    for i in order:
        if len(samples) == n:
            break
        try:
            samples.append(make(int(i)))
        except BadRow as error:
            if on_bad_row == "stop":
                raise BadRow(f"{rows.name(int(i))}: {error}") from error
            skipped[f"{rows.unit} {int(i) + rows.first}"] = str(error)
    if skipped:
        listed = "; ".join(f"{row}: {why}" for row, why in skipped.items())
        print(f"{rows.where}: {len(skipped)} bad rows skipped: {listed}")
    return samples, skipped
