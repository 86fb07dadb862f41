"""The report's sections, one per claim: its words, verdict, figures, settings and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from visdepth_utils.claims.registry import load_claims
from visdepth_utils.report.verdict_table import effect_text, number_text, verdict_rows
from visdepth_utils.runs.records import read_claims, read_provenance


def claim_sections(folder: Path, figures: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Everything a run has on each claim, as text ready to be shown.

    One dictionary per claim with a verdict or a figure (its number is that of the claim's
    notebook), in the order of claims.yaml, those not registered last: ``claim, title, words`` (of
    the paper), ``quoted, where, supports, refutes, unstated, notebook, settings, figures,
    summaries`` and ``verdicts``, each a row of ``verdict_rows`` and its ``thresholds, details,
    controls``.
    """
    registered = load_claims()["claims"]
    runs = read_provenance(folder).get("notebooks") or {}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in registered}
    for entry, row in zip(read_claims(folder), verdict_rows(folder), strict=True):
        tables = {name: shown_table(entry.get(name) or []) for name in ("details", "controls")}
        thresholds = flat_rows(entry.get("thresholds") or {})
        found.setdefault(row["claim"], []).append({**row, **tables, "thresholds": thresholds})
    sections = []
    for claim, verdicts in found.items():
        spec = registered.get(claim, {})
        notebook = spec.get("notebook") or (verdicts[0]["notebook"] if verdicts else "")
        own = [figure for figure in figures if notebook and figure["name"][:3] == notebook[:3]]
        if verdicts or own:
            sections.append(
                {
                    "claim": claim,
                    "title": spec.get("title", ""),
                    "words": spec.get("quote") or spec.get("paraphrase") or "",
                    "quoted": "quote" in spec,
                    "where": spec.get("where", ""),
                    "supports": spec.get("supports", ""),
                    "refutes": spec.get("refutes", ""),
                    "unstated": flat_rows(spec.get("not_stated") or {}),
                    "notebook": notebook,
                    "settings": flat_rows(runs.get(notebook, {}).get("settings") or {}),
                    "figures": own,
                    "summaries": _summaries(folder, notebook[:3]),
                    "verdicts": verdicts,
                }
            )
    return sections


def _summaries(folder: Path, number: str) -> list[dict[str, Any]]:
    """Small tables that a notebook keeps for the report: name and ``shown_table`` of each."""
    files = sorted((folder / "summaries").glob(f"{number}*.csv")) if number else []
    return [
        {
            "name": file.stem[len(number) :].replace("_", " "),
            "table": shown_table(pd.read_csv(file).to_dict("records")),
        }
        for file in files
    ]


def flat_rows(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested entries as (path, text) rows."""
    if not isinstance(value, dict):
        return [(path, "-" if value is None else str(value))]
    return [
        row
        for name, item in value.items()
        for row in flat_rows(item, f"{path} / {name}" if path else str(name))
    ]


def shown_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """Rows of a table as text, a value and its bounds in one cell, empty columns left out.

    ``lo`` and ``hi`` bound the column before them. Gives ``head`` (names of the columns) and
    ``body`` (lists of cells: text, and whether it is a number).
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    bounded = {"lo", "hi"} <= set(names) and names.index("lo") > 0
    value = names[names.index("lo") - 1] if bounded else None
    columns = []
    for name in names:
        if bounded and name in ("lo", "hi"):
            continue
        if name == value:
            pairs = [(row.get(name), (row.get("lo"), row.get("hi"))) for row in rows]
            cells = [effect_text(*pair) for pair in pairs]
        else:
            cells = [number_text(row.get(name)) for row in rows]
        numbers = all(isinstance(row.get(name), int | float | None) for row in rows)
        if any(cell not in ("", "-") for cell in cells):
            head = f"{name} [bounds]" if name == value else name
            columns.append((head, [(cell, numbers) for cell in cells]))
    return {
        "head": [head for head, _ in columns],
        "body": [list(cells) for cells in zip(*(cells for _, cells in columns), strict=True)],
    }
