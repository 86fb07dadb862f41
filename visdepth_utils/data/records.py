"""Rows of a data set, read one by one by number, and the files that they are in."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from visdepth_utils.common.errors import first_line
from visdepth_utils.common.files import REPO, places
from visdepth_utils.data.images import BadRow

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@(?!.*\.\.)[\w./-]+)?")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_PIECES = (b"[", b"]", b"{", b"}", b"},", b"],")
_STRINGS = (pa.string(), pa.large_string())


@dataclass(frozen=True)
class Rows:
    """The rows of one split of a data set."""

    where: str  # for messages: source and split
    columns: tuple[str, ...]
    base: Path | None  # folder that paths of pictures are relative to; None: no paths
    facts: dict[str, Any]  # source, revision, split and subset, for the record
    data: Any = field(repr=False)  # [i] is a row: a dictionary, or a table with one row (Arrow)
    unit: str = "row"  # what messages call a row
    first: int = 0  # number of the first row, as people count them in such a file

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """One row with undecoded pictures; BadRow if the line could not be read."""
        row = self.data[i]
        if isinstance(row, BadRow):
            raise row
        return row if isinstance(row, dict) else row.to_pylist()[0]

    def __iter__(self) -> Iterator[dict[str, Any] | None]:
        """All rows, few at a time; None for a line that could not be read."""
        if isinstance(self.data, list):
            for row in self.data:
                yield None if isinstance(row, BadRow) else row
        else:
            for part in self.data.iter(batch_size=32):
                yield from part.to_pylist()

    def name(self, i: int) -> str:
        """How messages call row i."""
        return f"{self.where}, {self.unit} {i + self.first}"


def locate_source(source: str | Path) -> Path | str:
    """Tell a file or folder from a hub id ``owner/name`` (or ``...@revision``), before reading.

    A path is relative to the working directory, else to the repository. FileNotFoundError: neither.
    """
    name = str(source)
    for path in (Path(os.path.expanduser(name)), REPO / name):
        if os.path.exists(path):  # unlike Path's, it takes a name of any length
            return path
    if HUB_ID.fullmatch(name) and not name.startswith("data/"):
        return name
    raise FileNotFoundError(
        f"no data at {name!r:.200} (looked in {places()}): "
        "give an existing folder or file, or a hub id owner/name"
    )


@contextlib.contextmanager
def readable(where: Path) -> Iterator[None]:
    """One line, a ValueError, for parquet that cannot be read, in whatever way that fails."""
    try:
        yield
    except Exception as error:
        why = first_line(error.__cause__ or error)
        raise ValueError(f"{where} is not readable as parquet ({why}): write it again") from error


def files_behind(where: Path) -> dict[str, Path]:
    """The files whose contents are the data, name -> path, sorted.

    All of a folder; of a table, it and the pictures that it names by path. ValueError: a table that
    cannot be read.
    """
    if where.is_dir():
        found = (file for file in where.rglob("*") if file.is_file())
        return {str(file.relative_to(where)): file for file in sorted(found)}
    named: set[str] = set()
    if where.suffix == ".jsonl":
        rows = [row for row in read_lines(where) if isinstance(row, dict)]
        cells = [cell for row in rows for name, cell in row.items() if name.startswith("image")]
        parts = [part for cell in cells for part in (cell if isinstance(cell, list) else [cell])]
        named = {part for part in parts if isinstance(part, str)}
    elif where.suffix == ".parquet":
        with readable(where):
            schema = pq.read_schema(where)
            paths = [f.name for f in schema if f.name.startswith("image") and f.type in _STRINGS]
            for column in paths:
                named |= set(pq.read_table(where, columns=[column])[column].to_pylist())
    files = {name: where.parent / name for name in named if isinstance(name, str) and name}
    pictures = {name: file for name, file in files.items() if os.path.isfile(file)}
    return {where.name: where, **dict(sorted(pictures.items()))}


def cached_revision(repo: str, revision: str, commit: str = "") -> str | None:
    """The commit that a data set's name stood for when it was last fetched, from the hub's cache.

    None for one that was not fetched. A ``commit`` given is noted in the cache, for runs without
    network.
    """
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="dataset")
    note = folder / "refs" / revision
    if commit and commit != revision:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(commit)
    if re.fullmatch("[0-9a-f]{40}", revision) and (folder / "snapshots" / revision).is_dir():
        return revision
    return note.read_text().strip() if note.is_file() else None


def read_lines(file: Path) -> list[dict[str, Any] | BadRow]:
    """The lines of a JSONL file, in UTF-8, as objects.

    A line that is none is its error, to be named later. Lines end in LF, CRLF or, in a file without
    LF, in CR.
    """
    content = file.read_bytes()
    lines = content.split(b"\n" if b"\n" in content else b"\r")
    while lines and not lines[-1].strip():
        lines.pop()
    return [_row(line) for line in lines]


def _row(line: bytes) -> dict[str, Any] | BadRow:
    """One line as an object, or what is wrong with it."""
    text = line.strip()
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if isinstance(row, list):
            return BadRow("it is no JSON object but an array: write one object per line")
        if not isinstance(row, dict):
            return BadRow("it is no JSON object: write one per line")
        if _HALF.search(line):
            json.dumps(row, ensure_ascii=False).encode()  # fails on half a character
        return row
    except UnicodeEncodeError:
        return BadRow("it holds half a character (\\ud800 to \\udfff alone): correct the line")
    except RecursionError:
        return BadRow("it is nested too deeply: correct the line")
    except UnicodeDecodeError as error:
        return BadRow(f"it is not UTF-8 (byte {error.start}): save the file as UTF-8")
    except ValueError as error:
        if not text:
            return BadRow("it is empty")
        if b"\0" in line:
            return BadRow("it is not UTF-8 (zero bytes, as UTF-16 has): save the file as UTF-8")
        if text in _PIECES or text.endswith((b",", b"{", b"[")):
            return BadRow(
                "it is no JSON by itself but a piece of an array, or of an object over several "
                "lines: write one object per line"
            )
        return BadRow(f"it is no JSON ({error}): correct the line")
