"""Verdicts of all models that have been run, side by side: from claims.json files alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from visdepth_utils.common.files import REPO, atomic
from visdepth_utils.runs.records import read_claims, read_provenance

__all__ = ["RECORDED", "all_verdicts", "record", "side_by_side"]

RECORDED = REPO / "data" / "runs"
"""Verdicts of runs on the embedded models, kept in the repository."""

COLUMNS = (
    *("claim", "model", "verdict", "effect", "lo", "hi", "p", "control"),
    *("images", "run", "date"),
)
ALIKE = ("n_samples", "seed", "profile", "dtype")


def all_verdicts(
    results: str | Path,
    recorded: str | Path = RECORDED,
    like: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Every verdict there is: of the runs in a results folder, and of those in the repository.

    Args:
        results: Folder of runs.
        recorded: Folder of further runs; one that is also in ``results`` is taken from there.
        like: Settings of the run that compares: only runs on its data are taken, and of several on
            one model those that share most of its N, seed, profile and dtype.

    Returns:
        Columns ``claim, model, verdict, effect, lo, hi, p, control, images, run, date``, sorted by
        claim and model, one row each: of several runs the one that was updated last. ``p`` is there
        where a claim is supported.

    Raises:
        ValueError: If a claims.json is damaged.
    """
    folders = {f.parent.name: f.parent for f in sorted(Path(recorded).glob("*/claims.json"))}
    folders |= {f.parent.name: f.parent for f in sorted(Path(results).glob("*/claims.json"))}
    rows = []
    for name, folder in folders.items():
        facts = read_provenance(folder)
        updated, chosen = str(facts.get("updated", "")), facts.get("settings") or {}
        if like and chosen.get("source") != like["source"]:
            continue
        alike = sum(chosen.get(key) == like[key] for key in ALIKE) if like else 0
        for entry in read_claims(folder):
            low, high = entry.get("ci") or (None, None)
            numbers = (entry.get("effect"), low, high, entry.get("p"), entry.get("control_effect"))
            named = (entry["claim"], entry["model"], entry["verdict"])
            rows.append((*named, *numbers, entry.get("n_images"), name, updated, alike))
    table = pd.DataFrame(rows, columns=[*COLUMNS, "alike"])
    table = table.sort_values(["claim", "model", "alike", "date"]).drop(columns="alike")
    numbers = ["effect", "lo", "hi", "p", "control"]
    table[numbers] = table[numbers].astype(float)
    return table.drop_duplicates(["claim", "model"], keep="last").reset_index(drop=True)


def side_by_side(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Claims as rows, models as columns, verdicts as cells.

    Args:
        verdicts: ``all_verdicts``.

    Returns:
        The table; a dash where a claim was not run on a model.
    """
    wide = verdicts.pivot(index="claim", columns="model", values="verdict").fillna("-")
    return wide.rename_axis(columns=None)


def record(run: str | Path, recorded: str | Path = RECORDED) -> Path:
    """Keep the verdicts of a run in the repository.

    Args:
        run: Its folder.
        recorded: Where to.

    Returns:
        The folder they are in: ``claims.json`` and ``provenance.json``.

    Raises:
        FileNotFoundError: If the run has none.
        ValueError: If one is damaged.
    """
    run = Path(run)
    target = Path(recorded) / run.name
    names = ("claims.json", "provenance.json")
    for name in names:
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} has no {name}: make one with make reproduce")
    read_claims(run), read_provenance(run)  # a damaged file would be in everybody's way
    for name in names:
        with atomic(target / name) as temporary:
            shutil.copyfile(run / name, temporary)
    return target
