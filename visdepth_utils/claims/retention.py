"""Scores by depth as numbers per image and task: what C4 averages over images and compares."""

from typing import Any

import numpy as np
import pandas as pd

from visdepth_utils.claims.bootstrap import Interval, Resampled, beside, by_image_and, require
from visdepth_utils.claims.once import once, only, values_of

Spec = dict[str, Any]
SWEEP = {"sample", "image", "task", "mode", "depth", "correct"}
CONDITIONS = {"image", "task", "condition", "score"}
TOKENS = {"sample", "image", "task", "mode", "depth", "kl"}
State = tuple[str, Interval, Interval | None]
"""Whether a task counts, its gain by the picture, the share of it that another picture brings."""


def scores_of(spec: Spec, rows: pd.DataFrame, conditions: pd.DataFrame, task: str) -> pd.DataFrame:
    """One row per image: the score at full depth, its mean over depth, and without the picture.

    Args:
        spec: Entry of claims.yaml; ``score`` names the column, ``floor`` the score without picture.
        rows: ``truncation_sweep`` of one mode and task.
        conditions: ``evaluate`` of the same samples; empty where it was not given.
        task: Name of the task.

    Returns:
        Columns ``full, area, floor, half`` and, where measured, ``own, blind, other`` (the task's
        own score with its picture, without and with another one). NaN where a row has none.

    Raises:
        ValueError: If the conditions lack images of the sweep.
    """
    curve = by_image_and(rows, ["depth"], spec["score"])
    own = by_image_and(rows, ["depth"], "correct")
    depths = curve.columns.to_numpy(float)
    out = {
        "full": curve.iloc[:, -1],
        "area": pd.Series(np.trapezoid(curve, depths / depths[-1], axis=1), curve.index),
        "half": curve.iloc[:, int(np.argmin(abs(depths - depths[-1] / 2)))],
        "own": own.iloc[:, -1],
    }
    for condition in ("blind", "other"):
        given = only(conditions, condition=condition, task=task)
        if given.empty:
            continue
        if lacking := set(curve.index) - values_of(given, "image"):
            raise ValueError(
                f"condition {condition!r} of task {task!r} lacks {len(lacking)} of "
                f"{len(curve)} images: evaluate the samples of the sweep"
            )
        out[condition] = by_image_and(given, ["condition"], "score").iloc[:, 0].reindex(curve.index)
    out.setdefault("blind", own.iloc[:, 0])
    out["floor"] = out["blind"] if spec["floor"] == "blind" else curve.iloc[:, 0]
    return pd.DataFrame(out)


def tokens_of(spec: Spec, rows: pd.DataFrame, task: str, images: pd.Index) -> pd.DataFrame:
    """Divergence per answer token, averaged over depths below the last, by image.

    Args:
        spec: Entry of claims.yaml; ``per_token.tokens`` "all", or "content" for those that the
            picture moves: by ``per_token.reads`` nats or more at depth 0, where it is gone.
        rows: ``token_kl`` of one mode and task.
        task: Name of the task.
        images: Of the sweep.

    Returns:
        Columns ``kl``, ``kl tokens`` (what to divide it by for nats per token) and, where depth 0
        was measured, ``kl blind`` (at depth 0). Of all tokens, samples are averaged, and ``kl
        tokens`` is 1; of content tokens there are sums over tokens, so that an image without any
        counts as nothing and is not lost; one with a missing value is NaN.

    Raises:
        ValueError: If images of the sweep are missing.
    """
    if lacking := set(images) - values_of(rows, "image"):
        raise ValueError(
            f"token_kl lacks {len(lacking)} of {len(images)} images of task {task!r}: "
            "measure it on the samples of the sweep"
        )
    content = spec["per_token"]["tokens"] == "content"
    return _per_token(rows, spec["per_token"]["reads"] if content else None).reindex(images)


@once
def _per_token(rows: pd.DataFrame, reads: float | None) -> pd.DataFrame:
    """As ``tokens_of``: of tokens that the picture moves by so many nats, or of all."""
    content, images, gaps = reads is not None, rows["image"].unique(), []
    if content:
        first = rows[rows["depth"] == 0].set_index(["sample", "token"])["kl"]
        if first.empty:
            return pd.DataFrame(index=images)
        kept = first.index[first >= reads]
        gaps = rows.loc[rows["kl"].isna(), "image"]
        rows = rows[pd.MultiIndex.from_frame(rows[["sample", "token"]]).isin(kept)]
    means = {}
    for name, part in (
        ("kl", rows[rows["depth"] < rows["depth"].max()]),
        ("kl blind", rows[rows["depth"] == 0]),
    ):
        if content:
            summed = part.groupby("image", sort=False)["kl"].sum(min_count=1)
            depths = max(part["depth"].nunique(), 1)
            means[name] = summed.reindex(images, fill_value=0.0) / depths
            if name == "kl":
                sizes = part.groupby("image", sort=False).size() / depths
                means["kl tokens"] = sizes.reindex(images, fill_value=0.0)
        elif len(part):
            by_sample = part.groupby(["image", "sample"], sort=False)["kl"]
            filled = by_sample.mean().where(by_sample.count() == by_sample.size())
            means[name] = filled.groupby("image").agg(lambda x: x.mean(skipna=False))
    if not content:
        means["kl tokens"] = pd.Series(1.0, images)
    out = pd.DataFrame(means).reindex(images)
    return out[~out.index.isin(gaps)]


def usable(spec: Spec, drawn: Resampled, task: str) -> State:
    """Whether a task says anything: a gain by the picture, and by this picture only.

    Returns:
        ``"used"``, ``"unclear"``, ``"no control"`` or why it is skipped; the gain over no picture;
        the share of the gain that another picture brings (None where it was not measured).
    """
    gain = drawn.bounded(lambda m: m[f"{task} full"] - m[f"{task} floor"])
    if not gain.lo > 0:
        better = "not beyond doubt better" if gain.value > 0 else "no better"
        return f"skipped: {better} than without picture", gain, None
    if f"{task} other" not in drawn.means:
        return "no control", gain, None
    other = drawn.bounded(
        lambda m: (
            (m[f"{task} other"] - m[f"{task} blind"]) / (m[f"{task} own"] - m[f"{task} blind"])
        )
    )
    most = spec["margins"]["other_share"]["value"]
    if other.below(most):
        return "used", gain, other
    if other.value >= most:
        share = beside(other.value, most)
        return f"skipped: another picture brings {share} of the gain", gain, other
    return "unclear", gain, other


def another_picture(spec: Spec, states: dict[str, State], suffix: str = "") -> list[dict[str, Any]]:
    """One row per task for ``Verdict.controls``: the share of the gain that another one brings."""
    most = spec["margins"]["other_share"]["value"]
    shown = {True: "no", False: "yes", None: "unclear"}
    return [
        {"control": f"another picture ({task}){suffix}", "shows it": shown[other.below(most)]}
        | {"effect": other.value, "lo": other.lo, "hi": other.hi}
        for task, (_, _, other) in states.items()
        if other is not None
    ]


def share_kept(means: dict[str, Any], tasks: list[str], column: str = "area") -> Any:
    """Share of the gain by the picture that is left, averaged over tasks.

    Args:
        means: Column -> mean, or (B,) of them.
        tasks: Names of tasks.
        column: ``area`` for the mean over depth, ``half`` for half the depth.

    Returns:
        A number, or (B,).
    """
    kept = 0.0
    for task in tasks:
        floor = means[f"{task} floor"]
        kept = kept + (means[f"{task} {column}"] - floor) / (means[f"{task} full"] - floor)
    return kept / len(tasks)


def columns_of(
    spec: Spec, sweep: pd.DataFrame, controls: dict[str, pd.DataFrame], tasks: list[str]
) -> dict[str, pd.DataFrame]:
    """Everything per image of every task, images with a gap still in."""
    conditions = controls.get("conditions", pd.DataFrame(columns=sorted(CONDITIONS)))
    require(conditions, CONDITIONS, "conditions", "evaluate")
    tokens, out = controls.get("token_kl"), {}
    if tokens is not None:
        require(tokens, TOKENS, "token_kl", "token_kl")
        tokens = only(tokens, mode=spec["mode"])
    for task in tasks:
        out[task] = scores_of(spec, only(sweep, task=task), conditions, task)
        own = tokens if tokens is None else only(tokens, task=task)
        if own is not None and len(own):
            out[task] = out[task].join(tokens_of(spec, own, task, out[task].index))
    return out
