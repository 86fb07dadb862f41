"""Open a data set: a file, a folder, or a name on the hub.

Tables are read through the ``datasets`` library, which maps them from disk: a row is in memory only
while it is looked at. JSONL is read by ``records.read_lines``, so that a bad line can be named.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from visdepth_utils.common.errors import first_line
from visdepth_utils.data.formats import READ
from visdepth_utils.data.records import Rows, cached_revision, locate_source, read_lines, readable

SPLITS = ("test", "validation", "val", "dev", "train")
"""Names of splits, the one that is preferred first."""


def open_rows(
    source: str | Path,
    prefer: Callable[[Sequence[str]], tuple[str | None, str | None]],
    split: str | None = None,
    subset: str | None = None,
) -> Rows:
    """Open one split of a source (see ``locate_source``).

    ``prefer``: columns (none for a hub id) -> split and subset that are taken unless chosen.
    Without either, the split is the first of ``SPLITS``. ``subset`` is a folder of the files, or a
    configuration on the hub; one that is neither is left to the caller, who may know a column for
    it.

    FileNotFoundError: no such data, or no table in the folder. ValueError: no such split, no rows,
    or a data set that cannot be loaded.
    """
    where = locate_source(source)
    if isinstance(where, str):
        rows = _from_hub(where, prefer, split, subset)
    elif any((where / name).is_file() for name in ("state.json", "dataset_dict.json")):
        rows = _saved(where, prefer, split)
    else:
        rows = _from_files(where, prefer, split, subset)
    if not len(rows):
        raise ValueError(f"{rows.where} has no rows: give data with at least one")
    return rows


def hub_revision(repo: str, revision: str = "main") -> str:
    """The commit that a data set's name stands for; works offline for one fetched before."""
    from huggingface_hub import HfApi

    with _given(repo):
        try:
            commit = HfApi().dataset_info(repo, revision=revision).sha
        except HfHubHTTPError:  # it answers, and says no
            raise
        except Exception:  # no network
            if known := cached_revision(repo, revision):
                return known
            raise
    return cached_revision(repo, revision, commit) or commit


def _from_hub(where: str, prefer: Callable, split: str | None, subset: str | None) -> Rows:
    """The network is in ``hub_revision`` and in the calls of ``datasets`` here."""
    import datasets
    from huggingface_hub.constants import HF_HOME

    repo, _, revision = where.partition("@")
    commit = hub_revision(repo, revision or "main")
    usual, one = prefer(())
    with _given(where):
        every = datasets.get_dataset_config_names(repo, revision=commit)
    chosen = [name for name in (subset, one) if name in every][:1] or every
    parts, taken = [], ""
    for name in chosen:
        with _given(where):
            names = datasets.get_dataset_split_names(repo, name, revision=commit)
        taken = _pick(names, split, usual, where)
        with _given(where):
            parts.append(datasets.load_dataset(repo, name, split=taken, revision=commit))
    with _given(where):
        table = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    facts = {"revision": commit, "split": taken, "subset": ", ".join(chosen)}
    return _arrow(table, where, Path(HF_HOME), facts)


def _from_files(where: Path, prefer: Callable, split: str | None, subset: str | None) -> Rows:
    """A parquet or JSONL file, or a folder of such, as the hub lays them out or flat."""
    if where.is_dir():
        tables, lines = (_shown(where, end) for end in ("parquet", "jsonl"))
        if tables and lines:
            raise ValueError(f"{where} holds parquet and JSONL files: give one of the files")
    else:
        ends = (".parquet", ".jsonl")
        tables, lines = ([where] if where.suffix == end else [] for end in ends)
    files = tables or lines
    if not files:
        raise FileNotFoundError(f"no .parquet or .jsonl file in {where}: give a folder with one")
    columns = _columns(files[0]) if tables else ()
    usual, one = prefer(columns)
    subsets = {file: _subset(file, where) for file in files}
    chosen = next((name for name in (subset, one) if name in subsets.values()), None)
    files = [file for file in files if chosen in (None, subsets[file])]
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split(file, where), []).append(file)
    taken = _pick(list(by_split), split, usual, str(where))
    base = where if where.is_dir() else where.parent
    facts = {"split": taken, "subset": chosen}
    if lines:
        data = [row for file in by_split[taken] for row in read_lines(file)]
        good = [row for row in data if isinstance(row, dict)]
        names = tuple(dict.fromkeys(name for row in good for name in row))
        # With one file a row's number is its line.
        where_text = str(by_split[taken][0] if len(by_split[taken]) == 1 else where)
        if data and not good:
            raise ValueError(f"{where_text} has no line that can be read; the first: {data[0]}")
        return Rows(where_text, names, base, {"source": str(where), **facts}, data, "line", 1)
    return _parquet(by_split[taken], where, base, facts)


def _parquet(files: Sequence[Path], where: Path, base: Path, facts: dict[str, Any]) -> Rows:
    """Parquet files of one split, mapped from disk by ``datasets``."""
    import datasets

    columns = _columns(files[0])
    odd = next((file for file in files if set(_columns(file)) != set(columns)), None)
    if odd:
        pair = f"{files[0].name}, {odd.name}"
        raise ValueError(f"{where} holds tables with unlike columns ({pair}): give one of them")
    if not sum(pq.read_metadata(file).num_rows for file in files):
        return Rows(str(where), columns, base, facts, [])  # the library fails on a table of none
    features = _features(files[0])
    options = {"split": "train", "columns": features and list(features), "features": features}
    with readable(where), _quiet():
        paths = [str(file) for file in files]
        table = datasets.load_dataset("parquet", data_files=paths, **options)
    return _arrow(table, str(where), base, facts)


def _features(file: Path) -> Any:
    """The columns with a type that ``datasets`` knows, if there are others; else None."""
    from datasets import Features

    known, schema = {}, pq.read_schema(file)
    for column in schema:
        try:
            known |= Features.from_arrow_schema(pa.schema([column], schema.metadata))
        except Exception as error:
            if column.name in READ:
                raise ValueError(
                    f"{file}: its column {column.name} is of the type {column.type}: "
                    "store text, numbers, lists or pictures"
                ) from error
    return None if len(known) == len(schema) else Features(known)


def _saved(where: Path, prefer: Callable, split: str | None) -> Rows:
    """What ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    import datasets

    found = datasets.load_from_disk(str(where))
    if isinstance(found, datasets.Dataset):
        return _arrow(found, str(where), where, {"split": str(found.split or "")})
    usual, _ = prefer(next(iter(found.values())).column_names)
    taken = _pick(list(found), split, usual, str(where))
    return _arrow(found[taken], str(where), where, {"split": taken})


def _arrow(table: Any, where: str, base: Path, facts: dict[str, Any]) -> Rows:
    """In Arrow's format ``datasets`` hands out what is stored: no picture is decoded by it."""
    text = f"{where} ({facts['split']})" if facts.get("split") else where
    names = tuple(table.column_names)
    return Rows(text, names, base, {"source": where, **facts}, table.with_format("arrow"))


def _columns(file: Path) -> tuple[str, ...]:
    with readable(file):
        names = tuple(pq.read_schema(file).names)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{file} has the column {twice!r} more than once: rename one of them")
    return names


def _shown(folder: Path, end: str) -> list[Path]:
    """Tables in a folder, without what systems and tools hide there (``._rows.jsonl``)."""
    return sorted(
        file
        for file in folder.rglob(f"*.{end}")
        if not any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)
    )


def _subset(file: Path, where: Path) -> str:
    """The folder of a file, as the hub names configurations: ``Counting/val-00000-...parquet``."""
    parts = file.parent.relative_to(where).parts if where.is_dir() else ()
    return "/".join(part for part in parts if part != "data" and part not in SPLITS)


def _split(file: Path, where: Path) -> str:
    """The split that a file's name or folder says; "train" if it says none, as on the hub."""
    parts = file.relative_to(where).parts[:-1] if where.is_dir() else ()
    words = [*re.split(r"[^a-z]+", file.stem.lower()), *parts]
    return next((word for word in words if word in SPLITS), "train")


def _pick(names: Sequence[str], wanted: str | None, usual: str | None, where: str) -> str:
    """The split that is wanted, or the usual one, or the first of ``SPLITS``."""
    same = {"val": "validation", "validation": "val"}
    for name in (wanted, same.get(wanted)) if wanted else (usual, same.get(usual or ""), *SPLITS):
        if name in names:
            return str(name)
    if wanted:
        raise ValueError(f"{where} has no split {wanted!r}: it has {', '.join(names)}")
    return names[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the bars of ``datasets`` out of notebooks."""
    from datasets import utils

    bars, level = not utils.are_progress_bars_disabled(), utils.logging.get_verbosity()
    utils.disable_progress_bars()
    utils.logging.set_verbosity(utils.logging.CRITICAL)  # what goes wrong is raised, in one line
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if bars:
            utils.enable_progress_bars()


@contextlib.contextmanager
def _given(name: str) -> Iterator[None]:
    """Quiet, and one line for no network, no such name, no right to read it: each has a class."""
    try:
        with _quiet():
            yield
    except Exception as error:
        raise FileNotFoundError(_refusal(name, error)) from error


def _refusal(name: str, error: Exception) -> str:
    """What the hub's refusal means, and what helps."""
    why = first_line(error)
    repo = name.partition("@")[0]
    if isinstance(error, GatedRepoError) or re.search(r"\bgated\b", str(error)):
        return (
            f"data {name!r} is gated ({why}): accept its terms at "
            f"{constants.ENDPOINT}/datasets/{repo}, then log in with: hf auth login"
        )
    if re.search(r"\bscripts?\b", str(error)):
        return (
            f"data {name!r} is made by a script, and none is run here ({why}): take the hub's "
            f"own copy as tables, {repo}@refs/convert/parquet"
        )
    return (
        f"data {name!r}: no such file or folder here, and the hub does not give it "
        f"({why}): check the name and the network, or give source= a folder"
    )
