"""Figures of savings, for C8: measured beside predicted by depth, and score against cost."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visdepth_utils.plots.bands import need
from visdepth_utils.plots.style import PANEL_INCHES, finish, panels, styled
from visdepth_utils.plots.sweeps import DEPTH_AXIS, TASK_COLOURS

KINDS = {
    "prefill": ("prefill: time", ("prefill", "FLOPs")),
    "decode": ("decoding: time per token", ("decode_bytes", "bytes read")),
    "kv": ("KV cache: bytes held", ("kv", "bytes")),
}
"""What was measured -> title, and what predicts it."""
MEASURED = {"image_tokens", "depth", "again"}
MEASURED |= {f"{kind}_{what}" for kind in KINDS for what in ("ratio", "least", "most")}
PREDICTED = {"image_tokens", "depth"} | {f"{name}_ratio" for _, (name, _) in KINDS.values()}


def savings_by_depth(measured: pd.DataFrame, predicted: pd.DataFrame) -> Figure:
    """Ratio to the whole model by depth: prefill time, time per token, bytes of the cache.

    Points: medians over repetitions of ``savings.measured_ratios`` of one decoder, with their
    range. Lines: ``costs.predicted_costs`` of it, one table per count of image tokens below the
    other. The cross at the right edge is the whole model's second run, which saves nothing.

    Raises:
        ValueError: A missing column, no rows, several decoders, or a count without a prediction.
    """
    need(measured, MEASURED, "measured", "tradeoff.measured_ratios", "decoder")
    need(predicted, PREDICTED, "predicted", "costs.predicted_costs")
    counts = sorted(set(measured["image_tokens"]))
    if lacking := set(counts) - set(predicted["image_tokens"]):
        raise ValueError(f"{min(lacking)} image tokens were measured but not predicted")
    colours = dict(zip(counts, sns.color_palette("viridis", len(counts) + 1), strict=False))
    last = int(measured["depth"].max())
    with styled():
        fig, axes = panels(3, xlabel=DEPTH_AXIS)
        for ax, (kind, (title, (name, unit))) in zip(axes, KINDS.items(), strict=True):
            ax.axhline(1, color="#444444", ls=":", lw=1.2, label="the whole model")
            for count in counts:
                line = predicted[predicted["image_tokens"] == count]
                ax.plot(line["depth"], line[f"{name}_ratio"], color=colours[count], lw=1.3)
                rows = measured[measured["image_tokens"] == count]
                once, again = rows[~rows["again"]], rows[rows["again"]]
                _points(ax, once, kind, colours[count], "o", f"{count} image tokens")
                _points(ax, again.assign(depth=last + 0.4), kind, colours[count], "x", "")
            ax.set(title=f"{title} (lines: {unit})", ylim=(0, max(1.15, *ax.get_ylim())))
        axes[0].set(ylabel="ratio to the whole model")
        finish(fig, axes, "", "points: measured, median and range; lines: predicted")
    return fig


def cost_front(
    points: pd.DataFrame,
    *,
    cost: str = "prefill",
    recommended: Mapping[str, int] | None = None,
    floors: Mapping[str, float] | pd.Series | None = None,
    cost_name: str = "prefill time",
) -> Figure:
    """Score against cost, one panel per task; the Pareto front as a line.

    Each point of ``savings.scores_and_savings`` is a depth; numbers name those on the front.
    ``cost`` is ``prefill``, ``decode`` or ``kv``. ``recommended``: task -> depth to be marked.
    ``floors``: task -> score without the picture, drawn dotted.
    """
    columns = {"task", "depth", "score", "lo", "hi", f"{cost}_ratio", f"front_{cost}"}
    need(points, columns, "points", "tradeoff.scores_and_savings")
    tasks = list(dict.fromkeys(points["task"]))
    with styled():
        size = (2.6 * len(tasks) + 0.4, PANEL_INCHES[1])
        fig, axes = plt.subplots(1, len(tasks), figsize=size, squeeze=False, sharey=True)
        for i, (ax, task) in enumerate(zip(axes[0], tasks, strict=True)):
            rows = points[points["task"] == task].sort_values(f"{cost}_ratio")
            colour = TASK_COLOURS.get(task, f"C{i}")
            _front(ax, rows, cost, colour)
            if recommended and task in recommended:
                at = rows[rows["depth"] == recommended[task]]
                style = {"facecolor": "none", "edgecolor": "#000000", "s": 130, "zorder": 4}
                ax.scatter(at[f"{cost}_ratio"], at["score"], label="recommended depth", **style)
            if floors is not None and np.isfinite(floors.get(task, np.nan)):
                ax.axhline(floors[task], color="#444444", ls=":", lw=1.2, label="no picture")
            ax.axvline(1, color="#bbbbbb", lw=1)
            ax.set(title=task, xlabel=f"{cost_name}, ratio to the whole", ylim=(-0.05, 1.08))
        axes[0, 0].set(ylabel="score")
        finish(fig, axes[0], "", "bars: 95% interval by image; filled: on the Pareto front")
    return fig


def _points(
    ax: Axes, rows: pd.DataFrame, kind: str, colour: Sequence[float], marker: str, label: str
) -> None:
    """Medians with their range over repetitions."""
    middle = rows[f"{kind}_ratio"]
    reach = [middle - rows[f"{kind}_least"], rows[f"{kind}_most"] - middle]
    style = {"fmt": marker, "color": colour, "ms": 4, "lw": 1, "label": label or None}
    ax.errorbar(rows["depth"], middle, yerr=np.abs(reach), **style)


def _front(ax: Axes, rows: pd.DataFrame, cost: str, colour: str) -> None:
    """All depths, those on the front filled, joined and named."""
    x, front = rows[f"{cost}_ratio"], rows[f"front_{cost}"].to_numpy(bool)
    reach = np.abs([rows["score"] - rows["lo"], rows["hi"] - rows["score"]])
    ax.errorbar(x, rows["score"], yerr=reach, fmt="none", ecolor=colour, lw=0.8, alpha=0.6)
    ax.scatter(x[~front], rows["score"][~front], s=22, facecolor="white", edgecolor=colour)
    ax.plot(x[front], rows["score"][front], color=colour, lw=1.4, marker="o", ms=4.5)
    for depth, at, score in zip(rows["depth"][front], x[front], rows["score"][front], strict=True):
        place = {"xytext": (3, -9), "textcoords": "offset points", "fontsize": 6.5}
        ax.annotate(str(depth), (at, score), **place)
