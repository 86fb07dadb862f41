"""Accuracy with the picture, without it, and with another sample's picture.

A model that answers as well with another picture does not use the picture, and nothing measured on
its image tokens means anything. `python -m visdepth_utils eval-minivlm` prints the table for the
embedded models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from visdepth_utils.blocks import in_blocks
from visdepth_utils.scoring import score
from visdepth_utils.settings import Parser
from visdepth_utils.store.files import read_object, write_text
from visdepth_utils.tasks import (
    EMBEDDED,
    Sample,
    Task,
    load_task,
    samples_and_budget,
    with_other_image,
    without_image,
)

if TYPE_CHECKING:
    from visdepth_utils.vlm import VLM

CONDITIONS: dict[str, Callable[[Sequence[Sample]], list[Sample]]] = {
    "full": list,
    "blind": without_image,
    "other": with_other_image,
}
FLOORS = {"mcq": 0.90, "vqa": 0.92, "caption": 0.93, "reason (long)": 0.88, "chart": 0.80}
"""What `base` must reach with the picture; with another's it must fall to within 8 points of
chance.
"""
CHANCE_MARGIN = 0.08


def evaluate(
    vlm: VLM,
    task: Task,
    condition: str = "full",
    batch_size: int = 32,
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Greedy answers and their scores.

    Args:
        vlm: The model.
        task: The samples.
        condition: "full", "blind" (no picture) or "other" (another sample's picture).
        batch_size: Samples at a time; halved when memory runs out.
        progress: Called with (done, total, label).

    Returns:
        One row per sample: sample, image, task, kind, style, condition, output, score.

    Raises:
        ValueError: Unknown condition.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"unknown condition {condition!r}: use {', '.join(CONDITIONS)}")
    samples, budget = samples_and_budget(vlm, task, None)
    shown = CONDITIONS[condition](samples)
    outputs = in_blocks(
        shown,
        1,
        batch_size,
        lambda block, rows: vlm.generate(block, budget, rows),
        progress,
        "generate",
    )
    rows = [
        {
            **s.labels(),
            "condition": condition,
            "output": out,
            "score": score(s, out),
        }
        for s, out in zip(samples, outputs, strict=True)
    ]
    return pd.DataFrame(rows)


def chance(task: Task) -> float:
    """Score of the best constant answer per kind of question: what is to be had without looking.

    The constant is chosen on the task's own samples, so this is an upper estimate of blind chance.
    """
    total = 0.0
    for kind in sorted({s.kind for s in task.samples}):
        samples = [s for s in task.samples if s.kind == kind]
        total += max(
            sum(score(s, said) for s in samples) for said in {s.reference for s in samples}
        )
    return total / len(task.samples)


def accuracy_table(results: pd.DataFrame, chances: dict[str, float] | None = None) -> pd.DataFrame:
    """Mean score by task (and style, for `reason`) and condition, rounded to 3 digits.

    Args:
        results: Rows of `evaluate`, several tasks and conditions together.
        chances: Optional chance level by row name; becomes a column.

    Returns:
        A frame with a row per task and columns full, blind, other (those present), chance, n.
    """
    named = results.assign(
        name=[_row_name(t, s) for t, s in zip(results.task, results["style"], strict=True)]
    )
    table = named.pivot_table(
        index="name", columns="condition", values="score", aggfunc="mean", sort=False
    )
    table = table[[c for c in CONDITIONS if c in table.columns]].round(3)
    if chances is not None:
        table["chance"] = [round(chances[name], 3) for name in table.index]
    table["n"] = (
        named[named.condition == named.condition.iloc[0]].groupby("name", sort=False).size()
    )
    table.columns.name = None
    table.index.name = "task"
    return table


def _row_name(task: str, style: str) -> str:
    return f"{task} ({style})" if task == "reason" else task


def evaluate_all(
    vlm: VLM,
    n: int | None = None,
    conditions: Sequence[str] = tuple(CONDITIONS),
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """All embedded tasks (all styles of `reason`) under the conditions, as one accuracy table."""
    parts, chances = [], {}
    for name, budget in EMBEDDED.items():
        for style in budget if isinstance(budget, dict) else (None,):
            task = load_task(name, n=n, style=style)
            chances[_row_name(name, style or "")] = chance(task)
            parts += [evaluate(vlm, task, c, progress=progress) for c in conditions]
    return accuracy_table(pd.concat(parts, ignore_index=True), chances)


def misses(table: pd.DataFrame) -> list[str]:
    """Which floors the table misses, in words; empty if it meets them all."""
    out = []
    for name, floor in FLOORS.items():
        row = table.loc[name]
        if row["full"] < floor:
            out.append(f"{name}: {row['full']:.3f} is below the floor {floor}")
        if "other" in row and row["other"] > row["chance"] + CHANCE_MARGIN:
            out.append(
                f"{name}: {row['other']:.3f} with another picture, chance is {row['chance']:.3f}"
            )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Print the accuracy tables of models and write them as JSON, beside those of other models.

    Returns:
        0, or 1 if `base` or a seed of it misses a floor.
    """
    from visdepth_utils.running.progress import progress_line
    from visdepth_utils.vlm import load_vlm

    parser = Parser(
        prog="python -m visdepth_utils eval-minivlm", description=main.__doc__.splitlines()[0]
    )
    shipped = sorted(str(p.parent) for p in Path("data/minivlm").glob("*/recipe.json"))
    parser.add_argument("models", nargs="*", default=shipped, help="default: all shipped models")
    parser.add_argument("--n", type=int, default=None, help="samples per task; all by default")
    parser.add_argument("--out", type=Path, default=Path("results/eval-minivlm.json"))
    args = parser.parse_args(argv)
    found, failed = {}, False
    # Before the measurement, which would be lost.
    earlier = read_object(args.out) if args.out.exists() else {}
    for path in args.models:
        vlm = load_vlm(path)
        table = evaluate_all(vlm, args.n, progress=progress_line())
        missed = misses(table)
        found[Path(path).name] = {
            "weights_hash": vlm.weights_hash,
            "accuracy": {k: {c: float(v) for c, v in row.items()} for k, row in table.iterrows()},
            "floors missed": missed,
        }
        print(f"\n{path}\n{table.to_string()}\n" + ("\n".join(missed) or "all floors met"))
        failed |= bool(missed) and Path(path).name.startswith("base")
    write_text(args.out, json.dumps(dict(sorted((earlier | found).items())), indent=1) + "\n")
    print(f"written: {args.out}")
    return int(failed)
