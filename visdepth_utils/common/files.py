"""Files that are whole or not there: atomic writes, locks, readable JSON, a disk that says no."""

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so one run per results folder there
    fcntl = None

REPO = Path(__file__).resolve().parents[2]
"""The checkout, or the folder above an installed package."""

_MENDS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "your quota is used up, free some space",
    errno.EFBIG: "the file is larger than what is allowed here",
    errno.EROFS: "give a folder that can be written, e.g. OUT=results/mine",
    errno.EACCES: "give a folder that can be written, e.g. OUT=results/mine",
    errno.EPERM: "give a folder that can be written, e.g. OUT=results/mine",
    errno.ENOTDIR: "a part of this path is a file, give another folder",
    errno.EEXIST: "there is a file of that name, give another folder",
    errno.EISDIR: "there is a folder of that name, give another one",
    errno.ENAMETOOLONG: "the name is too long, give a shorter one",
    errno.EIO: "the disk reports a fault",
}


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables for a while."""
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            del os.environ[name]
        os.environ.update({name: value for name, value in old.items() if value is not None})


def places() -> str:
    """Where a relative path is looked for, in words: the working directory, then the repository."""
    return " and ".join(dict.fromkeys((str(Path.cwd()), str(REPO))))


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what a disk answers while ``path`` is written into one line with the file and the mend.

    OSError of the same errno, for full, read-only and broken disks; others pass unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _MENDS or isinstance(error, WriteError):
            raise
        raise WriteError(error.errno, path) from error


class WriteError(OSError):
    """A file could not be written, said in one line."""

    def __init__(self, number: int, path: Path) -> None:
        """Say what (the errno ``number``) and where."""
        super().__init__(number, os.strerror(number))
        self.path = path

    def __str__(self) -> str:
        """One line: file, reason, mend."""
        return (
            f"cannot write {self.path} ({self.strerror}): {_MENDS[self.errno]}, and run again: "
            "what was finished is kept"
        )


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file so that a kill leaves the old one or the new one, never half of it.

    Gives a temporary path in the same folder, which is made if needed. Whoever writes there and
    leaves the block without an exception has it synced to disk and renamed to ``path``; an
    exception removes it.
    """
    with explained(path):
        with _temporary(path) as temporary:
            yield temporary
        _sync_folder(path.parent)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new file beside ``path`` that replaces it in the end, or goes."""
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


def _sync_folder(folder: Path) -> None:
    """A rename is durable only once its folder is synced."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; ValueError if it does not, or is damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable ({error}): delete or restore it") from error
    return found


def rows_text(entries: Sequence[dict[str, Any]]) -> str:
    """JSON of a list of entries (plain values; no NaN) that can be read and compared line by line.

    Each value of an entry begins a line; a list of tables' rows has one row per line.
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

    The lock itself is the hidden file ``.<name>.lock`` beside it.
    """
    with _lock_file(path) as handle:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Refuse a second run in the same folder, which is made, by a ValueError.

    The system lifts the lock of a run that was killed.
    """
    with _lock_file(folder / "run") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise ValueError(
                    f"{folder} is in use by another run (process {owner}): wait for it, or give "
                    "another folder with OUT="
                ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


@contextlib.contextmanager
def _lock_file(path: Path) -> Iterator[TextIO]:
    """Open ``.<name>.lock`` beside a path; what is in it stays."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.with_name(f".{path.name}.lock").open("a+")
    with handle:
        yield handle
