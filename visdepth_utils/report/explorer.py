"""What the report's explorer and gallery show: outputs by depth and intervention, as words."""

import json
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

MODES = {
    "remove": "image tokens removed",
    "freeze": "image tokens frozen",
    "freeze other image": "another picture's states frozen in their place",
    "freeze noise": "noise frozen in their place",
    "window": "image tokens hidden in a few layers only",
}
"""Interventions that the explorer can switch between, in its order, and what each is called."""
_PER_TASK = 2


def read_outputs(folder: Path) -> list[dict[str, Any]]:
    """What the page embeds: outputs by depth, cut into words, with those that changed.

    The report has neither the model nor the data. So a notebook keeps the first samples of its
    table with their pictures, as ``explorer/<task>-<style>-<mode>.json`` in the run.

    Returns:
        One entry per task and style: ``name, measured, modes`` (mode to what its divergence is),
        ``samples``; a sample has ``sample, prompt, reference, pictures`` and ``rows`` (mode to
        rows), a row ``depth, words, added`` (places of words that the full model does not say),
        ``lost`` (places of the full model's words that are missing), ``score, kl``. Rows are sorted
        by depth, the last one is the full model's. Empty without files.

    Raises:
        ValueError: If a file is not what ``keep_outputs`` writes.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / "explorer").glob("*.json")):
        try:
            (entry,) = json.loads(file.read_text(encoding="utf-8"))
            _add(found, entry)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(
                f"{file} is not readable ({type(error).__name__}: {error}): delete it and run again"
            ) from error
    for task in found.values():
        task["modes"] = {
            m: task["modes"][m] for m in (*MODES, *task["modes"]) if m in task["modes"]
        }
        task["samples"] = list(task["samples"].values())
    return list(found.values())


def _add(found: dict[str, dict[str, Any]], entry: Mapping[str, Any]) -> None:
    """Put what a file holds to its task and style, outputs compared with the full model's."""
    plain = entry["style"] in ("", "direct")
    if entry["mode"] not in MODES:
        return
    name = entry["task"] if plain else f"{entry['task']}, {entry['style']} chains"
    task = found.setdefault(name, {"name": name, "measured": 0, "modes": {}, "samples": {}})
    task["measured"] = max(task["measured"], entry["measured"])
    task["modes"][entry["mode"]] = entry["divergence"]
    for sample in entry["samples"]:
        kept = {key: sample[key] for key in ("sample", "prompt", "reference", "pictures")}
        full = str(sample["rows"][-1][1] or "").split()
        rows = []
        for depth, output, score, kl in sample["rows"]:
            words = str(output or "").split()
            added, lost = differences(words, full)
            changed = {"words": words, "added": added, "lost": lost}
            rows.append({"depth": depth, **changed, "score": score, "kl": kl})
        one = task["samples"].setdefault(sample["sample"], {**kept, "rows": {}})
        one["rows"][entry["mode"]] = rows


def differences(words: list[str], full: list[str]) -> tuple[list[int], list[int]]:
    """Places of words that only the one, and only the other text has."""
    added: list[int] = []
    lost: list[int] = []
    for kind, a, b, c, d in SequenceMatcher(None, full, words, autojunk=False).get_opcodes():
        if kind != "equal":
            lost += range(a, b)
            added += range(c, d)
    return added, lost


def gallery(outputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Samples whose answer removal changes, by a rule: of each task the first two.

    Samples that the full model answers best come first. Each has ``task`` and ``sample`` (places in
    ``outputs``), ``name`` (of the task), ``prompt, picture, full, depth`` (the last one where
    removal still changes the answer) and ``said`` (what a mode is called, and its row there).
    """
    shown = []
    for t, task in enumerate(outputs):
        changed = []
        for s, sample in enumerate(task["samples"]):
            removed = sample["rows"].get("remove", [])
            depths = [row["depth"] for row in removed if row["added"] or row["lost"]]
            if depths and sample["pictures"]:
                changed.append((-(removed[-1]["score"] or 0), s, depths[-1], removed[-1]))
        for _, s, depth, full in sorted(changed, key=lambda item: item[:2])[:_PER_TASK]:
            sample = task["samples"][s]
            said = [
                (MODES[mode], row)
                for mode in ("remove", "freeze")
                for row in sample["rows"].get(mode, [])
                if row["depth"] == depth
            ]
            one = {"task": t, "sample": s, "name": task["name"], "prompt": sample["prompt"]}
            one |= {"picture": sample["pictures"][0], "full": " ".join(full["words"])}
            shown.append({**one, "depth": depth, "said": said})
    return shown
