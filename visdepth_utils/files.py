"""Files that are whole or not there: atomic writes, a lock for read-modify-write, readable JSON."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so one run per results folder there
    fcntl = None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file so that a kill leaves the old one or the new one, never half of it.

    Args:
        path: Where the file ends up; its folder is created.

    Yields:
        A temporary path in the same folder. Whoever writes there and leaves the block without an
        exception has it synced to disk and renamed to ``path``; an exception removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files that only the owner reads; results are for everybody the umask allows.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is durable only once the folder is synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Args:
        path: Where the file ends up.
        text: Its whole content.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def rows_text(entries: Sequence[dict[str, Any]]) -> str:
    """JSON of a list of entries that can be read and compared line by line.

    Args:
        entries: Plain values; no NaN.

    Returns:
        The text. Each value of an entry begins a line; a list of tables' rows has one row per line.
    """
    return "[" + ",".join(f"\n  {_entry_text(entry)}" for entry in entries) + "\n]\n"


def _entry_text(entry: dict[str, Any]) -> str:
    """One entry, indented by two."""
    lines = []
    for name, value in entry.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            rows = ",\n".join(f"      {json.dumps(row, allow_nan=False)}" for row in value)
            text = f"[\n{rows}\n    ]"
        elif isinstance(value, list):
            text = json.dumps(value, allow_nan=False)
        else:
            text = json.dumps(value, indent=2, allow_nan=False).replace("\n", "\n    ")
        lines.append(f"    {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n  }"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out while a file is read, changed and written back.

    Args:
        path: The file to guard; the lock itself is the hidden file ``.<name>.lock`` beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
