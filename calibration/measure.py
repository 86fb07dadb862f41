"""Runs the scenarios through ``verdict()`` and counts both errors, power and coverage."""

import math
import re
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.stats import binom

from calibration.scenarios import SCENARIOS, Scenario
from visdepth_utils.claims.registry import load_claims, verdict
from visdepth_utils.runs.provenance import commit

__all__ = ["RESAMPLES", "SIMULATIONS", "faults", "markdown", "measure", "read_table", "unexplained"]

RESAMPLES = 400
"""Bootstrap resamples in place of the registered number, for time: bounds are a little coarser."""
SIMULATIONS = {
    "C0": 60,
    "C1": 60,
    "C2": 40,
    "C3": 60,
    "C4": 40,
    "C5": 24,
    "C6": 100,
    "C7": 60,
    "C8": 60,
}
POOLED = 24
"""Simulations whose rows together give an effect without noise: the truth, for coverage."""
COUNTS = ("supported", "not supported")
MAX_FALSE, MIN_POWER, MIN_COVERAGE, CHANCE = 0.05, 0.9, 0.9, 0.01
COLUMNS = ("claim", "world", "simulations", *COUNTS, "wanted", "truth", "coverage", "made")


def most_false(n: int) -> int:
    """Largest count of false support in n that a rate of 5% makes with 1% probability or more."""
    return int(binom.isf(CHANCE, n, MAX_FALSE))


def least_power(n: int) -> int:
    """Smallest count of support in n that a power of 90% makes with 1% probability or more."""
    return int(binom.ppf(CHANCE, n, MIN_POWER))


def measure(
    simulations: dict[str, int] | None = None,
    *,
    resamples: int = RESAMPLES,
    scenarios: Iterable[Scenario] = SCENARIOS,
    workers: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Judge simulated tables by the registered rules.

    Args:
        simulations: Claim -> number of simulations of each of its scenarios; seeds 0, 1, ...
        resamples: Of the bootstrap.
        scenarios: Which.
        workers: Processes.
        say: Called with a line for each scenario.

    Returns:
        One row per scenario, ``COLUMNS``: counts of ``supported`` and ``not supported``, how many
        of them are ``wanted``, ``truth`` (the effect without noise), ``coverage`` (the share of the
        printed 95% intervals that hold it; both NaN where the effect is not defined), and the day
        and commit on which it was ``made``.
    """
    asked = {**SIMULATIONS, **(simulations or {})}
    # By place, as a scenario holds functions, which do not travel between processes.
    jobs = [(SCENARIOS.index(s), asked[s.claim], resamples) for s in scenarios]
    rows = []
    if workers == 1:
        found = map(_scenario, jobs)
    else:
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        found = pool.map(_scenario, jobs)
    for row in found:
        rows.append(row)
        counts = ", ".join(f"{row[name]} {name}" for name in COUNTS)
        say(f"{row['claim']} {row['world']}: {counts} of {row['simulations']}")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _scenario(job: tuple[int, int, int]) -> dict[str, Any]:
    """All simulations of one scenario."""
    place, n, resamples = job
    scenario = SCENARIOS[place]
    registry = load_claims()
    registry["common"]["resamples"] = resamples
    verdicts, intervals, pooled = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "claims.yaml"
        path.write_text(yaml.safe_dump(registry), encoding="utf-8")
        for seed in range(n):
            table, control = scenario.make(seed)
            v = verdict(scenario.claim, table, control=control, path=path, p_value=False)
            verdicts.append(v.verdict)
            intervals.append(v.ci)
            if seed < POOLED:
                pooled.append((table, control or {}))
        truth = _together(scenario.claim, pooled, path)
    lo, hi = np.array(intervals).T
    known = np.isfinite(lo)
    slack = 1e-9 + 1e-6 * abs(truth)
    inside = (lo <= truth + slack) & (truth - slack <= hi)
    coverage = float(inside[known].mean()) if known.any() and math.isfinite(truth) else math.nan
    counts = [verdicts.count(name) for name in COUNTS]
    made = f"{date.today().isoformat()} {(commit() or '-')[:7]}"
    values = (scenario.claim, scenario.name, n, *counts, scenario.wanted, truth, coverage, made)
    return dict(zip(COLUMNS, values, strict=True))


def _together(
    claim: str, parts: list[tuple[pd.DataFrame, dict[str, pd.DataFrame]]], path: Path
) -> float:
    """The effect in the rows of all simulations, their images kept apart."""

    def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
        names = [
            t.assign(image=f"{k}-" + t["image"], sample=f"{k}-" + t["sample"])
            for k, t in enumerate(tables)
        ]
        return pd.concat(names, ignore_index=True)

    # Only what the effect itself reads: conditions, but neither untrained models nor tokens.
    control = [c["conditions"] for _, c in parts if "conditions" in c]
    given = {"conditions": joined(control)} if control else {}
    given |= {k: t for k, t in parts[0][1].items() if k == "costs"}
    table = joined([table for table, _ in parts])
    return verdict(claim, table, control=given, path=path, p_value=False).effect


def faults(table: pd.DataFrame) -> list[str]:
    """What is beyond chance: too much false support or refutation, or too little power.

    Args:
        table: Of ``measure`` or ``read_table``.

    Returns:
        One line each; empty if all is well.
    """
    out = []
    for row in table.to_dict("records"):
        n = int(row["simulations"])
        for wish in row["wanted"].split(", "):
            name = wish.rpartition(" at ")[0]
            k, most, least = int(row[name]), most_false(n), least_power(n)
            bound = f"at most {most}" if "at most" in wish else f"at least {least}"
            if (k > most) if "at most" in wish else (k < least):
                out.append(f"{row['claim']}, {row['world']}: {name} {k} of {n}, {bound} wanted")
    return out


_WHY = {(s.claim, s.name): s.not_met for s in SCENARIOS if s.not_met}


def _world(fault: str) -> tuple[str, str]:
    """Claim and world of a line of ``faults``."""
    claim, _, rest = fault.partition(", ")
    return claim, rest.partition(":")[0]


def unexplained(table: pd.DataFrame) -> list[str]:
    """Those of ``faults`` whose scenario does not say why, and reasons for faults that are none.

    Args:
        table: Of ``measure`` or ``read_table``.

    Returns:
        One line each; empty if the page says all there is to say.
    """
    found = {_world(fault): fault for fault in faults(table)}
    judged = {(row["claim"], row["world"]) for row in table.to_dict("records")}
    idle = [f"{c}, {w}: met, but explained" for c, w in _WHY.keys() & judged if (c, w) not in found]
    return [fault for world, fault in found.items() if world not in _WHY] + idle


def markdown(table: pd.DataFrame, resamples: int = RESAMPLES) -> str:
    """The page docs/calibration.md.

    Args:
        table: Of ``measure``.
        resamples: That it was made with.

    Returns:
        Markdown.
    """
    shown = table.copy()
    for name in COUNTS:
        pairs = zip(table[name], table["simulations"], strict=True)
        shown[name] = [f"{k} ({k / n:.0%})" for k, n in pairs]
    for name, digits in (("truth", 2), ("coverage", 2)):
        shown[name] = ["-" if pd.isna(x) else f"{x:.{digits}f}" for x in table[name]]
    lines = ["| " + " | ".join(row) + " |" for row in shown.astype(str).to_numpy().tolist()]
    registered = load_claims()["common"]["resamples"]
    return "\n".join(
        [
            "# Calibration of the verdicts",
            "",
            f"Made by `python -m calibration`; bootstrap resamples: {resamples} (registered: "
            f"{registered}); seeds 0, 1, ... of each world; `made` is day and commit.",
            "",
            "Tables with known truth go through the same `verdict()` as measured ones; images,",
            "layers and controls as in a run of profile `quick`. Where a claim is false,",
            "`supported` is an error, where it is true `not supported` is: at most 5% of",
            "simulations are wanted. Where it is true by the effect size of `power_at` in",
            "[claims.yaml](../data/claims.yaml), 90% or more are to be supported.",
            f"A count is a fault where its rate makes it with less than {CHANCE:.0%} probability.",
            "",
            "`coverage` is the share of the printed 95% intervals that hold the truth, that is",
            f"the effect in the rows of the first {POOLED} simulations together. Percentile",
            "intervals by image cover somewhat less than 95%, less where images come in clusters,",
            "and least in C8, whose effect is read at one of few depths. Below the table stands",
            "where it is under 90%: read such intervals as a rough width. No verdict rests on",
            "coverage; what decides are one-sided bounds and contrasts, which both counts test.",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---|---|--:|--:|--:|---|--:|--:|---|",
            *lines,
            "",
            "Goals that are not met:",
            "",
            *(
                f"- {fault}: {_WHY.get(_world(fault), 'not explained yet')}."
                for fault in faults(table)
            ),
            "",
            "Worlds in which fewer than 90% of the printed intervals hold the truth:",
            "",
            *(
                f"- {row['claim']}, {row['world']}: {row['coverage']:.0%}."
                for row in table[table["coverage"] < MIN_COVERAGE].to_dict("records")
            ),
            "",
            "C9 is not simulated here: its probability is exact, by enumeration, and the tests",
            "compare it with brute force.",
            "",
        ]
    )


def read_table(text: str) -> tuple[pd.DataFrame, int]:
    """The numbers of a page that ``markdown`` wrote.

    Args:
        text: The page.

    Returns:
        The table, and the bootstrap resamples it was made with.

    Raises:
        ValueError: If it is no such page.
    """
    said = re.search(r"bootstrap resamples: (\d+) ", text)
    head = "| " + " | ".join(COLUMNS) + " |"
    if not said or head not in text:
        raise ValueError("no calibration table: make it with python -m calibration")
    body = text[text.index(head) :].splitlines()[2:]
    lines = [line for line in body if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["simulations"] = table["simulations"].astype(int)
    for name in COUNTS:
        table[name] = table[name].str.split().str[0].astype(int)
    for name in ("truth", "coverage"):
        table[name] = pd.to_numeric(table[name].replace("-", None))
    return table, int(said[1])
