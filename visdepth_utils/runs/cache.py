"""The step cache: a finished table is measured once, and never read back damaged or outdated."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from visdepth_utils.common.errors import first_line
from visdepth_utils.common.files import atomic, explained
from visdepth_utils.runs import measuring_code

_META = b"visdepth.key"
_SEAL = b"visdepth.sha256:"
_UNSEALED = b"0" * 64
DAMAGED = ".damaged"
"""Ending of a cached file that was set aside."""
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


def canonical(value: Any) -> str:
    """JSON of a value with sorted keys, equal for equal values.

    Args:
        value: Plain values, nested; numpy scalars and tuples are taken as numbers and lists.

    Returns:
        One line of JSON.

    Raises:
        ValueError: If something in it has no JSON form.
    """

    def plain(item: Any) -> Any:
        if hasattr(item, "item") and getattr(item, "ndim", None) == 0:
            return item.item()
        raise TypeError(f"{type(item).__name__} {item!r:.60}")

    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"key of a step has no JSON form ({error}): use strings, numbers, lists and dicts"
        ) from error


def content_hash(samples: Sequence[Any]) -> str:
    """Hash samples by all that a measurement or a score may read: texts, choices, pixels.

    Args:
        samples: Dataclasses with ``images``; of anything else nothing is hashed.

    Returns:
        Hex digest (sha256).
    """
    digest = hashlib.sha256()
    for sample in filter(is_dataclass, samples):
        words = {f.name: getattr(sample, f.name) for f in fields(sample) if f.name != "images"}
        digest.update(json.dumps(words, sort_keys=True, default=str).encode())
        for image in sample.images:
            digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
    return digest.hexdigest()


def step(
    folder: Path,
    name: str,
    fn: Callable[[], pd.DataFrame],
    key: dict[str, Any],
    say: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Read a table from the cache, or compute and store it.

    Args:
        folder: Of the tables.
        name: Of the step; the file is ``<name>-<first 12 digits of the key's hash>.parquet``.
        fn: Computes the table; called without arguments, only when needed.
        key: Everything the table depends on besides the code: models, samples, seeds, options.
        say: Called with one line: measured, or from cache.

    Returns:
        The table as read back from the file, so that first and later runs get the very same.

    Raises:
        ValueError: For a bad name or key, or when ``fn`` returns something that is no table.
        OSError: In one line, if the disk is full or not writable.
    """
    if (frame := find(folder, name, key)) is not None:
        say(f"{name}: from cache ({len(frame)} rows)")
        return frame
    frame = store(folder, name, key, fn())
    say(f"{name}: measured ({len(frame)} rows)")
    return frame


def find(folder: Path, name: str, key: dict[str, Any]) -> pd.DataFrame | None:
    """Look a table up. A file that is damaged or somebody else's is set aside, and the user told.

    Args:
        folder: Of the tables.
        name: Of the step.
        key: As for ``step``.

    Returns:
        The table, or None if it must be measured.

    Raises:
        ValueError: For a bad name or key.
    """
    file, text = _place(folder, name, key)
    try:
        return _read(file, text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pa.ArrowException) as error:
        bad = file.with_name(file.name + DAMAGED)
        why = first_line(error)
        with explained(bad), contextlib.suppress(FileNotFoundError):  # another run was faster
            file.replace(bad)
        print(f"{name}: cached table is damaged ({why}), kept as {bad.name}; measuring again")
        return None


def store(folder: Path, name: str, key: dict[str, Any], frame: pd.DataFrame) -> pd.DataFrame:
    """Store a table; several processes may store the same one, and the last one stays.

    Args:
        folder: Of the tables.
        name: Of the step.
        key: As for ``step``.
        frame: The table.

    Returns:
        The table as read back.

    Raises:
        ValueError: For a bad name or key, or something that is no table.
        OSError: In one line, if the disk is full or not writable.
    """
    file, text = _place(folder, name, key)
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(
            f"step {name!r} returned {type(frame).__name__}: its function must return a DataFrame"
        )
    try:
        table = pa.Table.from_pandas(frame)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(
            f"step {name!r} made a table that parquet cannot hold ({first_line(error)}): "
            "give each column one type"
        ) from error
    with atomic(file) as temporary:
        kept = {_META: text.encode(), b"visdepth.seal": _SEAL + _UNSEALED}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **kept})
        pq.write_table(table, temporary)
        _seal(temporary)
    return _read(file, text)


def stored_key(file: Path) -> dict[str, Any] | None:
    """What a stored table says it depends on.

    Args:
        file: A file of the cache.

    Returns:
        ``step``, ``key``, ``code``; None if it is no readable table of this cache.
    """
    try:
        text = (pq.read_schema(file).metadata or {}).get(_META)
        return dict(json.loads(text)) if text else None
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return None


def _place(folder: Path, name: str, key: dict[str, Any]) -> tuple[Path, str]:
    """File of a step, and the text of its whole key."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"step name {name!r} is no file name: use letters, digits, - and _")
    text = canonical({"step": name, "key": key, "code": measuring_code.code_version()})
    return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.parquet", text


def _read(file: Path, text: str) -> pd.DataFrame:
    """Read if no byte has changed since it was written, and the key inside is the one asked for."""
    content = bytearray(file.read_bytes())
    if _digest(content) != _place_of_seal(content)[1]:
        raise ValueError("its checksum does not fit")
    table = pq.read_table(pa.BufferReader(bytes(content)))
    if (table.schema.metadata or {}).get(_META) != text.encode():
        raise ValueError("it was made with other settings")
    return table.to_pandas()


def _seal(file: Path) -> None:
    """Write the checksum of a file into it.

    Parquet's own checksums guard the values, but not the names, types and counts in its footer.
    """
    content = bytearray(file.read_bytes())
    place, _ = _place_of_seal(content)
    content[place : place + len(_UNSEALED)] = _digest(content).encode()
    file.write_bytes(content)


def _digest(content: bytearray) -> str:
    """Sha256 of a file's bytes, without those of the checksum itself."""
    place, _ = _place_of_seal(content)
    end = place + len(_UNSEALED)
    return hashlib.sha256(content[:place] + _UNSEALED + content[end:]).hexdigest()


def _place_of_seal(content: bytearray) -> tuple[int, str]:
    """Where the checksum stands, and what it says."""
    found = content.rfind(_SEAL)
    if found < 0:
        raise ValueError("it has no checksum")
    place = found + len(_SEAL)
    return place, content[place : place + len(_UNSEALED)].decode("ascii", "replace")
