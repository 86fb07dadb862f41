"""The field's table: what is left of the answers, and what is saved, at so many image tokens.

Published methods are compared at the share of image tokens that is retained, averaged over layers:
1 for the untouched model, d / L for removal at depth d, (d + (L - d) s) / L where a share s stays
from depth d on. Random pruning and FastV's rule are always in it: a method has to beat the first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from visdepth_utils.common.progress import Progress
from visdepth_utils.data.tasks import Task
from visdepth_utils.measure.costs import predicted_costs, shape_of
from visdepth_utils.measure.hiding import Hide, hiding_sweep
from visdepth_utils.measure.timing import time_by_depth
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.models.vlm import VLM

PRUNED_FROM = 2
"""Layer before which published methods prune (FastV's K), or less where that keeps too much."""


def savings_table(
    vlm: VLM,
    tasks: Mapping[str, Task],
    *,
    retained: Sequence[float] = (0.5, 0.25, 0.1),
    rules: Sequence[str] = ("random", "attention"),
    draws: int = 3,
    repeats: int = 5,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Relative accuracy and costs of each way to save, at each share of retained image tokens.

    Args:
        vlm: The model.
        tasks: By name; every sample has an image.
        retained: Shares of image tokens, averaged over layers, in 0..1; a removal can only be at a
            whole layer, so that the share in the table is the nearest that can be had.
        rules: Of ``hiding.RULES``, by which image tokens stay.
        draws: Of the random rule, averaged.
        repeats: Repetitions of each timed prefill; 0 to leave time out.
        progress: Called with (done, total, label).

    Returns:
        One row per method and share: ``method`` (``none``, ``remove``, ``freeze`` or a rule),
        ``retained``, ``depth``, ``share``, a column per task (mean score as a share of the
        untouched model's; NaN where that is 0), their mean ``average``, and ``flops``, ``kv_bytes``
        (both of the cost model at the samples' mean counts of tokens) and ``prefill_s`` (measured,
        median), each as a share of the untouched model's. ``to_markdown()`` and ``to_latex()`` of
        pandas print it.

    Raises:
        ValueError: A share outside 0..1, no tasks, no draws, or see ``hiding_sweep``.
    """
    if not tasks:
        raise ValueError("no tasks given: give at least one by name")
    if draws < 1:
        raise ValueError(f"draws={draws}: give at least 1")
    if wrong := [r for r in retained if not 0 <= r <= 1]:
        raise ValueError(f"retained {wrong[0]}: give shares in 0..1")
    last = vlm.n_layers
    plans = [_plan(last, method, r) for r in retained for method in ("remove", "freeze", *rules)]
    plans = [{"method": "none", "depth": last, "share": 0.0}, *plans]
    table = pd.DataFrame(plans).drop_duplicates(ignore_index=True)
    kept = table["depth"] + (last - table["depth"]) * table["share"]
    table.insert(1, "retained", kept / last)
    for name, task in tasks.items():
        table[name] = _relative(vlm, task, table, draws, progress)
    table["average"] = table[list(tasks)].mean(axis=1)
    image, other = _token_counts(vlm, tasks)
    return table.join(
        pd.DataFrame([_costs(vlm, r, image, other, repeats) for r in table.to_dict("records")])
    )


def _plan(last: int, method: str, retained: float) -> dict[str, Any]:
    """Where a method cuts, and what share of image tokens it keeps from there on."""
    if method in ("remove", "freeze"):
        return {"method": method, "depth": round(retained * last), "share": 0.0}
    depth = max(1, min(PRUNED_FROM, int(retained * last)))
    share = max(0.0, (retained * last - depth) / (last - depth))
    return {"method": method, "depth": depth, "share": share}


def _relative(
    vlm: VLM, task: Task, table: pd.DataFrame, draws: int, progress: Progress | None
) -> list[float]:
    """Mean score of each row's answers as a share of the untouched model's."""

    def variants(row: dict[str, Any]) -> list[Hide]:
        if not row["share"]:
            return [Hide(row["depth"])]
        many = draws if row["method"] == "random" else 1
        return [
            Hide(row["depth"], None, "all", row["share"], row["method"], i) for i in range(many)
        ]

    hidden = [row for row in table.to_dict("records") if row["method"] != "freeze"]
    asked = list(dict.fromkeys(v for row in hidden for v in variants(row)))
    answers = hiding_sweep(vlm, task, asked, progress=progress)
    depths = [row["depth"] for row in table.to_dict("records") if row["method"] == "freeze"]
    frozen = truncation_sweep(vlm, task, depths=depths, mode="freeze", progress=progress)
    by_depth = frozen.groupby("depth")["correct"].mean()
    means = answers.groupby(["depth", "share", "rule", "draw"])["correct"].mean()
    full = answers.loc[answers["intervention"] == "none", "correct"].mean()

    def value(row: dict[str, Any]) -> float:
        if row["method"] == "freeze":
            return by_depth[row["depth"]]
        keys = [(v.depth, v.share, v.rule, v.draw) for v in variants(row)]
        return sum(means[key] for key in keys) / len(keys)

    return [value(row) / full if full else float("nan") for row in table.to_dict("records")]


def _token_counts(vlm: VLM, tasks: Mapping[str, Task]) -> tuple[int, int]:
    """Image tokens and others of a prompt, means over all samples."""
    counts = []
    for task in tasks.values():
        for sample in task.samples:
            enc = vlm.encode([sample])
            image = int(enc.is_image.sum())
            counts.append((image, enc.is_image.shape[1] - image))
    image, other = zip(*counts, strict=True)
    return round(sum(image) / len(image)), round(sum(other) / len(other))


def _costs(vlm: VLM, row: dict[str, Any], image: int, other: int, repeats: int) -> dict[str, float]:
    """Shares of the untouched model's costs."""
    frozen = row["method"] == "freeze"
    shape, depth, share = shape_of(vlm.model.config), row["depth"], row["share"]
    told = predicted_costs(shape, image, other, [depth], share=share, frozen=frozen).iloc[0]
    out = {"flops": told["prefill_ratio"], "kv_bytes": told["kv_ratio"]}
    if repeats and depth < vlm.n_layers:
        mode = "freeze" if frozen else "remove"
        options = {"mode": mode, "share": share, "repeats": repeats, "new_tokens": 1}
        times = time_by_depth(vlm, image, other, [depth], **options)
        medians = times.groupby("depth")["prefill_s"].median()
        out["prefill_s"] = medians[depth] / medians[vlm.n_layers]
    elif repeats:
        out["prefill_s"] = 1.0
    return out
