"""Two runs side by side: which verdicts and numbers differ, and whether beyond noise."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visdepth_utils.report.verdict_table import aligned, effect_text
from visdepth_utils.runs.records import read_claims, read_provenance
from visdepth_utils.runs.schema import is_number

RULE = """\
within noise: either value lies in the other run's 95% interval
unclear:      the intervals overlap, but a value lies outside the other's interval
beyond noise: the intervals do not overlap
Two intervals that overlap do not show that two values are equal. Runs on the same pictures share
their chance, so that for them the rule finds fewer differences than a paired test would."""
_MOST_PARTS = 20


def judge(
    value: float | None,
    interval: Sequence[float | None],
    other: float | None,
    others: Sequence[float | None],
) -> str:
    """Say whether two values, each with its two bounds, differ beyond noise (see ``RULE``).

    None is what was not measured or reached. Gives "equal", "within noise", "unclear", "beyond
    noise", or why that cannot be said: "not measured", "no interval".
    """
    if value is None or other is None:
        return "equal" if value is other else "not measured"
    if value == other and list(interval) == list(others):
        return "equal"
    if any(bound is None for bound in (*interval, *others)) or not (interval and others):
        return "no interval"
    if interval[1] < others[0] or others[1] < interval[0]:
        return "beyond noise"
    inside = others[0] <= value <= others[1] and interval[0] <= other <= interval[1]
    return "within noise" if inside else "unclear"


def comparison_rows(one: Path, two: Path) -> list[dict[str, str]]:
    """Compare the verdicts of two runs, one row of text per claim; a claim that one lacks says so.

    Verdicts are paired by claim and model; what is left over by claim alone, so that runs of two
    models can be compared. Keys: ``claim, verdicts`` (equal or both), ``effect_1, effect_2, images,
    difference``.
    """
    rows = []
    for first, second in _pairs(read_claims(one), read_claims(two)):
        row = {"claim": str((first or second or {})["claim"])}
        for i, entry in enumerate((first, second), 1):
            row[f"effect_{i}"] = effect_text(*_effect(entry)) if entry else "-"
        row["verdicts"] = _both(first and first["verdict"], second and second["verdict"])
        row["images"] = _both(first and first.get("n_images"), second and second.get("n_images"))
        if first and second:
            row["difference"] = judge(*_effect(first), *_effect(second))
            if first.get("thresholds") != second.get("thresholds"):
                row["difference"] += ", judged by other thresholds"
        else:
            row["difference"] = f"only in {(one if first else two).name}"
        rows.append(row)
    return rows


def settings_that_differ(one: Path, two: Path) -> list[tuple[str, str, str]]:
    """What was set or used differently: rows (name, value in one, value in two)."""
    facts = [_facts(read_provenance(folder)) for folder in (one, two)]
    names = dict.fromkeys(name for known in facts for name in known)
    rows = [(name, *(known.get(name, "unknown") for known in facts)) for name in names]
    return [row for row in rows if row[1] != row[2]]


def comparison_text(one: Path, two: Path) -> str:
    """Everything that differs between two runs, as plain text.

    Settings, the table of claims, the parts of verdicts that differ beyond noise, and the rule.
    """
    names = [one.name, two.name] if one.name != two.name else [str(one), str(two)]
    rows = comparison_rows(one, two)
    if not rows:
        return f"no verdicts recorded in {names[0]} and {names[1]}"
    lines = [f"1: {names[0]}", f"2: {names[1]}", ""]
    lines += [f"{name}: {a} | {b}" for name, a, b in settings_that_differ(one, two)] or [
        "same settings, weights, data, code and versions"
    ]
    heads = {
        "claim": "claim",
        "verdicts": "verdict 1 | 2",
        "effect_1": "effect 1 [95% interval]",
        "effect_2": "effect 2 [95% interval]",
        "images": "images",
        "difference": "difference of effects",
    }
    lines += ["", *aligned(heads, rows)]
    changed = sum(" | " in row["verdicts"] and "only" not in row["difference"] for row in rows)
    beyond = sum(row["difference"].startswith("beyond") for row in rows)
    lines += ["", f"{changed} verdicts differ, {beyond} effects differ beyond noise"]
    parts, compared = _parts(read_claims(one), read_claims(two))
    lines.append(f"{len(parts)} of {compared} parts of verdicts differ beyond noise")
    lines += [f"  {part}" for part in parts[:_MOST_PARTS]]
    if len(parts) > _MOST_PARTS:
        lines.append(f"  and {len(parts) - _MOST_PARTS} more")
    return "\n".join([*lines, "", RULE])


Entry = Mapping[str, Any]


def _pairs(one: Sequence[Entry], two: Sequence[Entry]) -> Iterator[tuple[Entry | None, ...]]:
    """Entries of both runs that belong together, by claim; None where one lacks it."""
    for claim in sorted({entry["claim"] for entry in (*one, *two)}):
        left = {entry["model"]: entry for entry in one if entry["claim"] == claim}
        right = {entry["model"]: entry for entry in two if entry["claim"] == claim}
        for model in [model for model in left if model in right]:
            yield left.pop(model), right.pop(model)
        if len(left) == len(right) == 1:
            yield left.popitem()[1], right.popitem()[1]
        yield from ((entry, None) for entry in left.values())
        yield from ((None, entry) for entry in right.values())


def _effect(entry: Entry) -> tuple[float | None, list]:
    """Effect and interval of an entry."""
    return entry.get("effect"), list(entry.get("ci") or [])


def _both(a: Any, b: Any) -> str:
    """One value where both are equal, else both; a dash where a run lacks it."""
    texts = ["-" if value is None else str(value) for value in (a, b)]
    return texts[0] if texts[0] == texts[1] else " | ".join(texts)


def _parts(one: Sequence[Entry], two: Sequence[Entry]) -> tuple[list[str], int]:
    """Rows of details that differ beyond noise, as text; and how many could be compared."""
    parts, compared = [], 0
    for first, second in _pairs(one, two):
        if not (first and second):
            continue
        ours, theirs = _measures(first), _measures(second)
        for name in [name for name in ours if name in theirs]:
            difference = judge(*ours[name], *theirs[name])
            compared += difference not in ("not measured", "no interval")
            if difference == "beyond noise":
                values = " | ".join(effect_text(*side[name]) for side in (ours, theirs))
                parts.append(f"{first['claim']} {name}: {values}")
    return parts, compared


def _measures(entry: Entry) -> dict[str, tuple[float | None, list]]:
    """First cell -> value and bounds of the rows of details; the value stands before ``lo``."""
    out = {}
    for row in entry.get("details") or []:
        cells = list(row)
        if "lo" in cells[2:]:
            numbers = (row[cells[cells.index("lo") - 1]], row["lo"], row.get("hi"))
            if all(number is None or is_number(number) for number in numbers):
                out[str(row[cells[0]])] = (numbers[0], list(numbers[1:]))
    return out


def _facts(provenance: Entry) -> dict[str, str]:
    """Settings, of each notebook where they are not those of all, and what was used."""
    ran = provenance.get("notebooks") or {}
    settings = {name: entry.get("settings") or {} for name, entry in ran.items()}
    out = {}
    for key in dict.fromkeys(key for chosen in settings.values() for key in chosen):
        values = {name: str(chosen.get(key)) for name, chosen in settings.items()}
        if len(set(values.values())) == 1:
            out[key] = next(iter(values.values()))
        else:
            out |= {f"{key} of {name}": value for name, value in values.items()}
    used = {
        "weights": (provenance.get("model") or {}).get("weights_hash"),
        "data": (provenance.get("data") or {}).get("hash"),
        "measuring code": (provenance.get("code") or {}).get("measuring"),
    }
    out |= {name: str(value)[:12] for name, value in used.items() if value}
    versions = (provenance.get("versions") or {}).items()
    return out | {f"version of {name}": str(value) for name, value in versions}
