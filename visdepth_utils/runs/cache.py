"""The step cache: a finished table is measured once, and never read back damaged or outdated."""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from visdepth_utils.common.errors import first_line
from visdepth_utils.common.files import atomic, explained, run_lock
from visdepth_utils.runs import measuring_code, provenance
from visdepth_utils.runs.settings import existing_run, results_folder

_META = b"visdepth.key"
_SEAL = b"visdepth.sha256:"
_UNSEALED = b"0" * 64
DAMAGED = ".damaged"  # ending of a cached file that was set aside
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


def canonical(value: Any) -> str:
    """JSON of nested plain values in one line, keys sorted: equal for equal values.

    Numpy scalars and tuples count as numbers and lists. ValueError if something has no JSON form.
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
    """Sha256 of all that a measurement or a score may read of samples: texts, choices, pixels.

    Samples are dataclasses with ``images``; of anything else nothing is hashed.
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
    """Read a table from the cache, or compute it by ``fn``, which has no arguments, and store it.

    ``key``: everything the table depends on besides the code, such as models, samples, seeds,
    options. The file is ``<name>-<first 12 digits of the key's hash>.parquet``. ``say`` is called
    with one line: measured, or from cache. The table is read back from the file, so that first and
    later runs get the very same. ValueError for a bad name or key, or when ``fn`` returns no table;
    OSError, in one line, if the disk is full or not writable.
    """
    if (frame := find(folder, name, key)) is not None:
        say(f"{name}: from cache ({len(frame)} rows)")
        return frame
    frame = store(folder, name, key, fn())
    say(f"{name}: measured ({len(frame)} rows)")
    return frame


def find(folder: Path, name: str, key: dict[str, Any]) -> pd.DataFrame | None:
    """Look a table up (see ``step``); None if it must be measured.

    A file that is damaged or somebody else's is set aside, and the user told.
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
    """Store a table, and return it as read back; errors as for ``step``.

    Several processes may store the same one, and the last one stays.
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
    """What a stored table depends on: ``step``, ``key``, ``code``; None if it is not readable."""
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


STALE_S = 3600
"""A temporary file untouched for so long has no living writer."""


def show_cache(name: str | None, prune: bool = False) -> str:
    """Say what the cache of one run (``name``: its folder, or its name in results) or of all holds.

    A line per run and state, with number and size. ``prune`` deletes what is outdated.
    FileNotFoundError if there is no such run; ValueError if a run to be pruned is in use.
    """
    lines, freed = [], 0
    found = sorted(results_folder().glob("*/tables/"))
    runs = [tables.parent for tables in found] if name is None else [existing_run(name, "tables")]
    for folder in runs:
        table = pd.DataFrame(list(entries(folder)), columns=["file", "state", "bytes"])
        counts = table.groupby("state")["bytes"].agg(["size", "sum"])
        lines += [
            f"{folder.name:<24}{state:<22}{row['size']:>6} files {row['sum'] / 2**20:>9.1f} MB"
            for state, row in counts.iterrows()
        ]
        outdated = table[table["state"] != "current"]
        freed += int(outdated["bytes"].sum())
        if prune and len(outdated):
            with run_lock(folder):
                for file in outdated["file"]:
                    with explained(file):
                        file.unlink(missing_ok=True)
    if not lines:
        return "the cache is empty"
    end = f"{freed / 2**20:.1f} MB " + ("deleted" if prune else "outdated; --prune deletes them")
    return "\n".join([*lines, end])


def entries(folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Every file of a run's cache, its state and its bytes.

    The state is ``current``, or why no run reads it again: ``other code``, ``other model``, ``other
    data``, ``unreadable``, ``set aside``, ``left by a kill``.
    """
    for file in sorted((folder / "tables").glob("*")) + sorted((folder / "tables").glob(".*.tmp")):
        if file.suffix == ".parquet":
            state = _state_of(stored_key(file))
        elif file.name.endswith(DAMAGED):
            state = "set aside"
        elif file.suffix == ".tmp":
            # A clock that was set back makes it younger than it is: then it stays for now.
            if time.time() - file.stat().st_mtime < STALE_S:
                continue
            state = "left by a kill"
        else:
            continue  # not of the cache
        yield file, state, file.stat().st_size


def _state_of(key: dict[str, Any] | None) -> str:
    """Compare a stored key with the code, model and data that are here now."""
    if key is None:
        return "unreadable"
    if key.get("code") != measuring_code.code_version():
        return "other code"
    parts = key.get("key", {})
    settings = parts.get("settings", {})
    weights, files = _model_hashes(str(settings.get("model")))
    if (parts.get("weights"), parts.get("model_files")) != (weights, files):
        return "other model"
    return "current" if parts.get("data") == _data_hash(settings.get("source")) else "other data"


@cache
def _model_hashes(name: str) -> tuple[str | None, str | None]:
    """Hashes of a model as it is now; of one that is gone, nothing that is in any key."""
    try:
        identity = provenance.model_identity(name)
    except (ValueError, OSError):
        return "gone", "gone"
    return identity["weights_hash"], identity["files_hash"]


@cache
def _data_hash(source: str | None) -> str | None:
    """Hash of the data as they are now."""
    return provenance.data_identity(source)["hash"]
