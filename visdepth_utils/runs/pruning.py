"""What the step cache holds, which of it no run will read again, and how to be rid of that."""

import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from visdepth_utils.common.files import REPO, explained, run_lock
from visdepth_utils.runs import cache as stepcache
from visdepth_utils.runs import measuring_code, provenance
from visdepth_utils.runs.settings import results_folder

KEPT = ("current",)
"""States that pruning leaves alone."""

STALE_S = 3600
"""A temporary file untouched for so long has no living writer."""


def show_cache(name: str | None, prune: bool = False) -> str:
    """Say what the cache of one run or of all runs holds.

    Args:
        name: A run's folder, or its name under the results; None for all.
        prune: Delete what is outdated.

    Returns:
        A line per run and state, with number and size, and what was done or can be.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If a run to be pruned is in use.
    """
    lines, freed = [], 0
    for folder in _runs(name):
        table = pd.DataFrame(list(entries(folder)), columns=["file", "state", "bytes"])
        counts = table.groupby("state")["bytes"].agg(["size", "sum"])
        lines += [
            f"{folder.name:<24}{state:<22}{row['size']:>6} files {row['sum'] / 2**20:>9.1f} MB"
            for state, row in counts.iterrows()
        ]
        outdated = table[~table["state"].isin(KEPT)]
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
    """Every file of a run's cache.

    Args:
        folder: Of the run.

    Yields:
        File, state and bytes. The state is ``current``, or why no run reads it again: ``other
        code``, ``other model``, ``other data``, ``unreadable``, ``set aside``, ``left by a kill``.
    """
    for file in sorted((folder / "tables").glob("*")) + sorted((folder / "tables").glob(".*.tmp")):
        if file.suffix == ".parquet":
            state = _state(stepcache.stored_key(file))
        elif file.name.endswith(stepcache.DAMAGED):
            state = "set aside"
        elif file.suffix == ".tmp":
            # A clock that was set back makes it younger than it is: then it stays for now.
            if time.time() - file.stat().st_mtime < STALE_S:
                continue
            state = "left by a kill"
        else:
            continue  # not of the cache
        yield file, state, file.stat().st_size


def _state(key: dict[str, Any] | None) -> str:
    """Compare a stored key with the code, model and data that are here now."""
    if key is None:
        return "unreadable"
    if key.get("code") != measuring_code.code_version():
        return "other code"
    parts = key.get("key", {})
    settings = parts.get("settings", {})
    weights, files = _model(str(settings.get("model")))
    if (parts.get("weights"), parts.get("model_files")) != (weights, files):
        return "other model"
    return "current" if parts.get("data") == _data(settings.get("source")) else "other data"


@cache
def _model(name: str) -> tuple[str | None, str | None]:
    """Hashes of a model as it is now; of one that is gone, nothing that is in any key."""
    try:
        identity = provenance.model_identity(name)
    except (ValueError, OSError):
        return "gone", "gone"
    return identity["weights_hash"], identity["files_hash"]


@cache
def _data(source: str | None) -> str | None:
    """Hash of the data as they are now."""
    return provenance.data_identity(source)["hash"]


def _runs(name: str | None) -> list[Path]:
    """Folders of runs that have tables."""
    results = results_folder()
    if name is None:
        return sorted(tables.parent for tables in results.glob("*/tables") if tables.is_dir())
    for folder in (Path(name), REPO / name, results / name):
        if os.path.isdir(folder / "tables"):  # unlike Path's, for a name of any length
            return [folder.resolve()]
    raise FileNotFoundError(
        f"no run {name!r:.200} with tables: give its folder or its name in results"
    )
