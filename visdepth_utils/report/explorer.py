"""Outputs by depth for the explorer of report.html: kept by a notebook, read back by the report.

The report has neither the model nor the data. So a notebook keeps what a reader wants to look at,
the first samples of its table with their pictures, as ``explorer/<task>-<style>.json`` in the run.
"""

import json
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any


def read_outputs(folder: Path) -> list[dict[str, Any]]:
    """What the page embeds: outputs cut into words, with those that changed.

    Returns:
        One entry per task and style: ``name, mode, divergence, measured, samples``; a sample has
        ``prompt, reference, pictures, rows``, a row ``depth, words, added`` (places of words that
        the full model does not say), ``lost`` (places of the full model's words that are missing),
        ``score, kl``. Rows are sorted by depth, the last one is the full model's. Empty without
        files.

    Raises:
        ValueError: If a file is not what ``keep_outputs`` writes.
    """
    found = []
    for file in sorted((folder / "explorer").glob("*.json")):
        try:
            (entry,) = json.loads(file.read_text(encoding="utf-8"))
            found.append(_for_page(entry))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{file} is not readable ({type(error).__name__}: {error}): delete it and run again"
            ) from error
    return found


def _for_page(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a file, its outputs compared with the full model's."""
    plain = entry["style"] in ("", "direct")
    samples = []
    for sample in entry["samples"]:
        full = str(sample["rows"][-1][1] or "").split()
        rows = []
        for depth, output, score, kl in sample["rows"]:
            words = str(output or "").split()
            added, lost = _differences(words, full)
            rows.append(
                {
                    "depth": depth,
                    "words": words,
                    "added": added,
                    "lost": lost,
                    "score": score,
                    "kl": kl,
                }
            )
        kept = {name: sample[name] for name in ("sample", "prompt", "reference", "pictures")}
        samples.append({**kept, "rows": rows})
    return {
        "name": entry["task"] if plain else f"{entry['task']}, {entry['style']} chains",
        "mode": entry["mode"],
        "divergence": entry["divergence"],
        "measured": entry["measured"],
        "samples": samples,
    }


def _differences(words: list[str], full: list[str]) -> tuple[list[int], list[int]]:
    """Places of words that only the one, and only the other text has."""
    added: list[int] = []
    lost: list[int] = []
    for kind, a, b, c, d in SequenceMatcher(None, full, words, autojunk=False).get_opcodes():
        if kind != "equal":
            lost += range(a, b)
            added += range(c, d)
    return added, lost
