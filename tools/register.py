"""Write down which rules are in force, and what had been seen by then: ``make register NOTE=...``.

A registration is an entry of data/registration.json: the hash of data/claims.yaml, the hash of the
code that judges, the day, and the models whose tables had been looked at. docs/deviations.md lists
every later change, from ``changes`` in claims.yaml. Whoever has the repository can compute both
hashes again and compare.
"""

import json
from datetime import date
from pathlib import Path
from typing import Any

from visdepth_utils.claims.registry import load_claims
from visdepth_utils.common.files import REPO, write_text
from visdepth_utils.runs.registration import REGISTER, in_force

__all__ = ["DEVIATIONS", "deviations", "register"]

DEVIATIONS = REPO / "docs" / "deviations.md"


def register(note: str, file: Path = REGISTER, today: date | None = None) -> dict[str, Any]:
    """Add a registration of the rules that are in force.

    Args:
        note: What it is for, in a sentence.
        file: The registrations.
        today: The day; None for today.

    Returns:
        The new entry.

    Raises:
        ValueError: The note is empty, or nothing has changed since the last registration.
    """
    if not note.strip():
        raise ValueError("a registration needs a sentence: give NOTE='what it is for'")
    entries = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    hashes = in_force()
    if entries and {name: entries[-1][name] for name in hashes} == hashes:
        last = entries[-1]
        raise ValueError(
            f"registration {last['number']} of {last['date']} has the same rules: nothing to add"
        )
    runs = sorted(path.name for path in (REPO / "data" / "runs").iterdir() if path.is_dir())
    shipped = sorted(path.parent.name for path in REPO.glob("data/minivlm/*/config.json"))
    entry = {
        "number": len(entries) + 1,
        "date": (today or date.today()).isoformat(),
        **hashes,
        "seen": {"models": shipped, "runs": runs},
        "note": note.strip(),
    }
    write_text(file, json.dumps([*entries, entry], indent=1) + "\n")
    return entry


def deviations() -> str:
    """The page of all changes of rules, newest first.

    Returns:
        Markdown: when, which claim, what was changed, and why or after seeing what.
    """
    rows = [
        (str(change["date"]), name, change["what"], " ".join(change["why"].split()))
        for name, entry in load_claims()["claims"].items()
        for change in entry["changes"]
    ]
    rows.sort(key=lambda row: row[1])
    rows.sort(key=lambda row: row[0], reverse=True)
    lines = [
        "# Changes of rules",
        "",
        "Written by `make register` from `changes` in `data/claims.yaml`. The rules in force on a "
        "day stand in `data/registration.json`, by their hashes.",
        "",
        "| date | claim | what | why, and after seeing what |",
        "|---|---|---|---|",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
