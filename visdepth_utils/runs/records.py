"""claims.json and provenance.json: read, written and checked; verdicts of all runs side by side.

Both are plain files in a folder that people copy, merge and edit. Code that shows or compares runs
may rely on names being text and numbers being numbers, whatever happened to the file.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from visdepth_utils.claims.registry import claim_entry, load_claims
from visdepth_utils.claims.verdict import VERDICTS
from visdepth_utils.common.files import REPO, atomic, locked, read_object, rows_text, write_text
from visdepth_utils.runs.registration import in_force
from visdepth_utils.runs.schema import checked_claims, checked_provenance


def read_claims(folder: Path) -> list[dict[str, Any]]:
    """Entries of a run's claims.json, none without the file; ValueError if it is damaged."""
    return _read(folder / "claims.json", checked_claims, [])


def read_provenance(folder: Path) -> dict[str, Any]:
    """Entries of a run's provenance.json, none without the file; ValueError if it is damaged."""
    return _read(folder / "provenance.json", checked_provenance, {})


def _read(file: Path, parse: Callable[[str], Any], nothing: Any) -> Any:
    """What a file holds, ``nothing`` without one; ValueError in one line if it is damaged."""
    if not file.exists():
        return nothing
    try:
        return parse(file.read_text(encoding="utf-8"))
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} is not readable ({error}): delete it and run again") from error


def as_entry(verdict: Any) -> dict[str, Any]:
    """A ``Verdict``, or a dictionary like one, with the values that claims.json can hold.

    ValueError if claim, model or a known verdict is missing.
    """
    entry = _plain(verdict.to_dict() if hasattr(verdict, "to_dict") else verdict)
    for name in ("claim", "model"):
        if not entry.get(name):
            raise ValueError(f"verdict without {name!r}: claims.json is filed by it")
    if entry.get("verdict") not in VERDICTS:
        raise ValueError(
            f"unknown verdict {entry.get('verdict')!r}: must be one of {', '.join(VERDICTS)}"
        )
    return entry


def edit_claims(
    folder: Path, keep: Callable[[dict[str, Any]], bool], new: dict[str, Any] | None = None
) -> None:
    """Keep some entries of claims.json and add a new one, as one step for other processes."""
    file = folder / "claims.json"
    with locked(file):
        entries = [old for old in read_claims(folder) if keep(old)] + ([new] if new else [])
        entries.sort(key=lambda item: (item["claim"], item["model"]))
        write_text(file, rows_text(entries))


def annotate(folder: Path, **facts: Any) -> None:
    """Change entries of provenance.json; dictionaries are merged into those already there."""
    file = folder / "provenance.json"
    with locked(file):
        entries = read_provenance(folder)
        for name, value in facts.items():
            old = entries.get(name)
            both = isinstance(value, dict) and isinstance(old, dict)
            entries[name] = {**old, **value} if both else value
        entries["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(file, json.dumps(_plain(entries), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Values that JSON can hold: numpy as numbers, NaN and infinity as None, paths as text."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


RECORDED = REPO / "data" / "runs"
"""Verdicts of runs on the embedded models, kept in the repository."""

CURVES = "curves.csv"
"""Of a run: curves by depth, as ``Run.keep_curves`` writes them."""

COLUMNS = (
    *("claim", "model", "verdict", "effect", "lo", "hi", "p", "control"),
    *("images", "run", "date"),
)
ALIKE = ("n_samples", "seed", "profile", "dtype")


def all_verdicts(
    results: str | Path,
    recorded: str | Path = RECORDED,
    like: Mapping[str, Any] | None = None,
    current: bool = False,
) -> pd.DataFrame:
    """Every verdict there is: of the runs in a results folder, and of those in the repository.

    Args:
        results: Folder of runs.
        recorded: Folder of further runs; one that is also in ``results`` is taken from there.
        like: Settings of the run that compares: only runs on its data are taken, and of several on
            one model those that share most of its N, seed, profile and dtype.
        current: Only verdicts by the rules that are in force: others do not bear comparison.

    Returns:
        Columns ``COLUMNS``, sorted by claim and model, one row each: of several runs the one
        that was updated last. ``p`` is there where a claim is supported.
    """
    folders = {f.parent.name: f.parent for f in sorted(Path(recorded).glob("*/claims.json"))}
    folders |= {f.parent.name: f.parent for f in sorted(Path(results).glob("*/claims.json"))}
    rows, rules = [], in_force() if current else None
    for name, folder in folders.items():
        facts = read_provenance(folder)
        updated, chosen = str(facts.get("updated", "")), facts.get("settings") or {}
        if like and chosen.get("source") != like["source"]:
            continue
        alike = sum(chosen.get(key) == like[key] for key in ALIKE) if like else 0
        for entry in read_claims(folder):
            if rules and entry.get("rules") != rules:
                continue
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
    """Claims as rows, models as columns, verdicts as cells; a dash where a claim was not run."""
    wide = verdicts.pivot(index="claim", columns="model", values="verdict").fillna("-")
    return wide.rename_axis(columns=None)


def two_models(verdicts: pd.DataFrame, one: str, two: str) -> str:
    """On which claims two models are given the same verdict, and on which another one.

    One or two sentences; claims that were not run on both are left out. Empty without any.
    """
    wide = verdicts.pivot(index="claim", columns="model", values="verdict")
    if one not in wide or two not in wide:
        return ""
    both = wide[[one, two]].dropna()
    same = both[both[one] == both[two]]
    other = both.drop(same.index)
    alike = "; ".join(f"{c} ({v})" for c, v in same[one].items())
    unlike = "; ".join(f"{c} ({a}, {b})" for c, a, b in other.itertuples())
    sentences = (("The same verdict on both", alike), (f"Different ({one}, {two})", unlike))
    return " ".join(f"{head}: {claims}." for head, claims in sentences if claims)


def read_curves(folder: Path) -> pd.DataFrame:
    """The curves by depth that a run keeps: ``plots.curves.COLUMNS``, empty without the file.

    ValueError if the file is damaged.
    """
    from visdepth_utils.plots.curves import COLUMNS as columns  # and with it matplotlib

    def parse(text: str) -> pd.DataFrame:
        return pd.read_csv(io.StringIO(text))[columns].astype(dict.fromkeys(columns[2:], float))

    return _read(folder / CURVES, parse, pd.DataFrame(columns=columns))


def all_curves(
    verdicts: pd.DataFrame, results: str | Path, recorded: str | Path = RECORDED
) -> dict[str, pd.DataFrame]:
    """Model to curves, of the models whose verdicts are compared and that have curves."""
    curves = {}
    for model, run in verdicts[["model", "run"]].drop_duplicates().itertuples(index=False):
        for folder in (Path(recorded) / run, Path(results) / run):
            table = read_curves(folder)
            if len(table):
                curves[model] = table
    return curves


def record(run: str | Path, recorded: str | Path = RECORDED) -> Path:
    """Keep the verdicts of a run in the repository, and say in which folder.

    It holds claims.json, provenance.json, curves.csv where there is one, and in ``earlier.json``
    what was recorded before wherever the verdict is another one now. FileNotFoundError if the run
    has no verdicts; ValueError if they are damaged.
    """
    run = Path(run)
    target = Path(recorded) / run.name
    names = ("claims.json", "provenance.json")
    for name in names:
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} has no {name}: make one with make reproduce")
    read_provenance(run)  # a damaged file would be in everybody's way
    now = {(entry["claim"], entry["model"]): entry["verdict"] for entry in read_claims(run)}
    day = str(read_provenance(target).get("updated", ""))[:10]
    earlier = _earlier(target) + [
        {name: old.get(name) for name in _KEPT} | {"day": day}
        for old in read_claims(target)
        if now.get((old["claim"], old["model"]), old["verdict"]) != old["verdict"]
    ]
    if earlier:
        write_text(target / "earlier.json", rows_text(earlier))
    for name in (*names, *([CURVES] if (run / CURVES).is_file() else [])):
        with atomic(target / name) as temporary:
            shutil.copyfile(run / name, temporary)
    return target


_KEPT = ("claim", "model", "verdict", "effect", "ci", "reason")


def _earlier(folder: Path) -> list[dict[str, Any]]:
    """Verdicts that were recorded in a folder before others took their place."""
    file = folder / "earlier.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def changed_verdicts(recorded: str | Path = RECORDED) -> pd.DataFrame:
    """Verdicts in the repository that were others before, and what was changed between.

    Columns ``claim, model, day`` (of the earlier one), ``before, reason, now, changed`` (what
    ``changes`` in claims.yaml lists of the claim from that day on), sorted.
    """
    claims = load_claims()["claims"]
    rows = []
    for folder in sorted(file.parent for file in Path(recorded).glob("*/earlier.json")):
        now = {(entry["claim"], entry["model"]): entry for entry in read_claims(folder)}
        for old in _earlier(folder):
            changes = [
                change["what"]
                for change in claims[old["claim"]]["changes"]
                if str(change["date"]) >= old["day"]
            ]
            row = {name: old[name] for name in ("claim", "model", "day")}
            row |= {"before": old["verdict"], "reason": old["reason"]}
            row["now"] = now[old["claim"], old["model"]]["verdict"]
            rows.append(row | {"changed": "; ".join(changes) or "measured again"})
    columns = ["claim", "model", "day", "before", "reason", "now", "changed"]
    return pd.DataFrame(rows, columns=columns).sort_values(["claim", "model", "day"])


def known_power(folder: Path, model: str, n_samples: int | None) -> list[str]:
    """What ``make power`` found on a model in runs below: a line per claim; None: its own number.

    E.g. "C7 at 96 images: 30% power; 270 images for 80%, 340 images for 90%".
    """
    from visdepth_utils.claims.power import power_text  # and with it the rule of claim 7

    lines = {}
    for file in sorted(folder.glob("*/power-*.json")):
        kept = read_object(file)
        if kept["model"] == model:
            n = n_samples or claim_entry(kept["claim"])["n_images"]
            lines[kept["claim"]] = power_text(kept["claim"], pd.DataFrame(kept["curve"]), n)
    return list(lines.values())
