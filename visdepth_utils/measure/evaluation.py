"""Accuracy with the picture, without it, and with another sample's picture.

A model that answers as well with another picture does not use the picture, and nothing measured on
its image tokens means anything.
"""

from collections.abc import Callable, Sequence

import pandas as pd

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.tasks import (
    Sample,
    Task,
    samples_and_budget,
    with_other_image,
    without_image,
)
from visdepth_utils.measure.batching import in_blocks
from visdepth_utils.measure.scores import score
from visdepth_utils.models.vlm import VLM

CONDITIONS: dict[str, Callable[[Sequence[Sample]], list[Sample]]] = {
    "full": list,
    "blind": without_image,
    "other": with_other_image,
}


def evaluate(
    vlm: VLM,
    task: Task,
    condition: str = "full",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Greedy answers and their scores, a row per sample.

    Columns ``sample, image, task, kind, style, condition, output, score``. ``condition`` is
    ``"full"``, ``"blind"`` (no picture) or ``"other"`` (another sample's picture). ``batch_size``
    is halved when memory runs out; ``progress`` is called with (done, total, label).
    """
    if condition not in CONDITIONS:
        raise ValueError(f"unknown condition {condition!r}: use {', '.join(CONDITIONS)}")
    samples, budget = samples_and_budget(vlm, task, None)
    shown = CONDITIONS[condition](samples)
    answer = lambda block, rows: vlm.generate(block, budget, rows)  # noqa: E731
    outputs = in_blocks(shown, 1, batch_size, answer, progress, "generate")
    rows = [
        {**s.labels(), "condition": condition, "output": out, "score": score(s, out)}
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
        said = {s.reference for s in samples}
        total += max(sum(score(s, text) for s in samples) for text in said)
    return total / len(task.samples)


def accuracy_table(results: pd.DataFrame, chances: dict[str, float] | None = None) -> pd.DataFrame:
    """Mean score by task (and style, for `reason`) and condition, rounded to 3 digits.

    ``results`` are rows of `evaluate`; ``chances``, by row name, become a column. Columns: full,
    blind, other (those present), chance, n.
    """
    named = results.assign(
        name=[row_name(t, s) for t, s in zip(results.task, results["style"], strict=True)]
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


def row_name(task: str, style: str) -> str:
    """How tables call a task, with the style of its chains."""
    return f"{task} ({style})" if task == "reason" else task
