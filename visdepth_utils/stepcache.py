"""The step cache: a finished table is measured once, and never read back damaged or outdated."""

import ast
import hashlib
import json
import re
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from visdepth_utils.files import atomic

# Modules that show, judge or organise, but change no measured number. Every other module counts as
# measuring, so a new one is never forgotten; sub-packages (minivlm, rules) do not.
NOT_MEASURING = frozenset(
    {
        "__init__",
        "__main__",
        "bands",
        "claim_sections",
        "claims",
        "compare",
        "explorer",
        "files",
        "headless",
        "multiplicity",
        "notebook_pages",
        "plots",
        "plots_costs",
        "plots_grid",
        "plots_reasoning",
        "plots_recovery",
        "plots_sweeps",
        "plots_verdicts",
        "progress",
        "provenance",
        "replication",
        "readme",
        "report",
        "reproduce",
        "runs",
        "settings",
        "show",
        "stepcache",
        "tradeoff",
        "untrained",
        "verdict_table",
        "verdicts",
    }
)
_NUMERIC_PACKAGES = ("numpy", "scikit-dimension", "torch", "transformers")
_META = b"visdepth.key"
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")


def hash_sources(folder: Path, skip: frozenset[str] = frozenset()) -> str:
    """Hash Python sources by what they mean: comments and layout do not count.

    Args:
        folder: Searched for ``*.py``, sub-folders not included.
        skip: Module names to leave out.

    Returns:
        Hex digest (sha256).
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        if file.stem not in skip:
            tree = ast.dump(ast.parse(file.read_text(encoding="utf-8")))
            digest.update(f"{file.stem}\0{tree}\0".encode())
    return digest.hexdigest()


@cache
def code_version() -> str:
    """Version of the code that measures: our modules and the libraries that do the arithmetic.

    Taken once per process, so that a source edited afterwards does not lend its version to numbers
    that the code already loaded has made.

    Returns:
        Hex digest (sha256).
    """
    parts = [hash_sources(Path(__file__).parent, NOT_MEASURING)]
    for name in _NUMERIC_PACKAGES:
        try:
            parts.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} missing")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


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
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"step name {name!r} is no file name: use letters, digits, - and _")
    text = canonical({"step": name, "key": key, "code": code_version()})
    file = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.parquet"
    if file.exists():
        try:
            frame = _read(file, text)
        except (OSError, ValueError, pa.ArrowException) as error:
            bad = file.with_name(file.name + ".bad")
            file.replace(bad)
            why = _first_line(error)
            print(f"{name}: cached table is damaged ({why}), kept as {bad.name}; measuring again")
        else:
            say(f"{name}: from cache ({len(frame)} rows)")
            return frame
    frame = fn()
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(
            f"step {name!r} returned {type(frame).__name__}: its function must return a DataFrame"
        )
    try:
        table = pa.Table.from_pandas(frame)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(
            f"step {name!r} made a table that parquet cannot hold ({_first_line(error)}): "
            "give each column one type"
        ) from error
    with atomic(file) as temporary:
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), _META: text.encode()}
        )
        pq.write_table(table, temporary, write_page_checksum=True)
    say(f"{name}: measured ({len(frame)} rows)")
    return _read(file, text)


def _read(file: Path, text: str) -> pd.DataFrame:
    """Read with page checksums, and only if the key stored inside is the one asked for."""
    table = pq.read_table(file, page_checksum_verification=True)
    if (table.schema.metadata or {}).get(_META) != text.encode():
        raise ValueError("it was made with other settings")
    return table.to_pandas()


def _first_line(error: BaseException) -> str:
    """The start of a message, short enough for one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
