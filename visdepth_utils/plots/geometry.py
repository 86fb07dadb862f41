"""Curves of geometry by layer with their nulls, for C1 and C2, and accuracy by task."""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from visdepth_utils.plots.bands import draw, need
from visdepth_utils.plots.style import COLOURS, CONTROL_STYLES, finish, panels, styled

CONDITIONS = {"full": "#0072B2", "blind": "#999999", "other": "#E69F00"}
CONDITION_NAMES = {"full": "its own picture", "blind": "no picture", "other": "another picture"}

LABELS = {
    "entropy": "matrix entropy / log n0",
    "id_twonn": "intrinsic dimension (TwoNN)",
    "id_mle": "intrinsic dimension (MLE)",
    "curvature": "depth curvature (degrees)",
    "update_ratio": "size of update, |v| / |h|",
    "cka_ahead": "similarity to state ahead (CKA)",
}

NULLS = {"curvature": ((90.0, "90: unrelated\nupdates"), (120.0, "120: noise\nonly"))}
"""Metric -> values expected with nothing going on; drawn and labelled."""

BAND_COLUMNS = {"layer", "metric", "mean", "lo", "hi"}
UPDATE_METRICS = {"update_ratio", "curvature"}
LOG_METRICS = {"update_ratio", "id_twonn", "id_mle"}
"""Drawn on a logarithmic axis: updates differ by orders of magnitude between layers and models, and
the dimension of text at the input would flatten the curve of the image, which is judged."""


def depth_curves(
    bands: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("entropy", "id_twonn", "curvature"),
    controls: Mapping[str, pd.DataFrame] | None = None,
    control_tokens: str = "image",
    stabilises: Mapping[str, float] | None = None,
    early: float | None = None,
    title: str = "",
) -> Figure:
    """Draw one panel per metric: value by layer, image beside text, controls in grey.

    ``bands`` and every control (name -> table, of which ``control_tokens`` are drawn) are of
    ``layer_bands``. ``stabilises``: metric -> layer l* of the image tokens, marked by a triangle
    and a line. ``early``: last layer that counts as early; the panel is shaded up to it. ValueError
    also where a metric is missing.
    """
    named = {f"control {name!r}": table for name, table in (controls or {}).items()}
    for name, table in {"bands": bands, **named}.items():
        need(table, BAND_COLUMNS, name, "layer_bands")
        if lacking := [metric for metric in metrics if metric not in set(table["metric"])]:
            raise ValueError(
                f"{name} has no metric {lacking[0]!r}: add it to metrics= of layer_geometry"
            )
    with styled():
        fig, axes = panels(len(metrics))
        for ax, metric in zip(axes, metrics, strict=True):
            if early is not None:
                ax.axvspan(
                    0, early, color="#000000", alpha=0.05, lw=0, label="early third of the decoder"
                )
            for i, (name, table) in enumerate((controls or {}).items()):
                label = name if name.startswith(control_tokens) else f"{name}, {control_tokens}"
                grey, dashes = CONTROL_STYLES[i % len(CONTROL_STYLES)]
                curve = _curve(table, metric, control_tokens)
                draw(ax, curve, grey, label, control=True, dashes=dashes)
            for modality, marker in (("image", "o"), ("text", "s")):
                curve = _curve(bands, metric, modality)
                draw(ax, curve, COLOURS[modality], f"{modality} tokens", marker=marker)
            _nulls(ax, metric)
            if stabilises and pd.notna(stabilises.get(metric)):
                _mark(ax, float(stabilises[metric]))
            ax.set(xlabel=layer_axis_name(metric), ylabel="", title=LABELS.get(metric, metric))
            ax.xaxis.get_major_locator().set_params(integer=True)
            if metric in LOG_METRICS and math.isfinite(ax.dataLim.minposy):  # else it warns
                ax.set_yscale("log")
                if metric != "update_ratio":
                    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                    ax.yaxis.set_minor_locator(NullLocator())
        finish(fig, axes, title)
    return fig


def accuracy_bars(
    results: pd.DataFrame, *, chances: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Draw the score of every task with its picture, without it and with another one.

    ``results``: rows of ``evaluate``. ``chances``: task -> score that is to be had without looking,
    drawn as a dotted line. Lines on the bars: 95% bootstrap interval by image. ValueError: a column
    is missing or a condition is unknown.
    """
    need(results, {"task", "image", "condition", "score"}, "results", "evaluate")
    if unknown := set(results["condition"]) - set(CONDITIONS):
        known = ", ".join(CONDITIONS)
        raise ValueError(f"condition {sorted(unknown)[0]!r} is unknown: use {known}")
    by = ["task", "condition", "image"]
    by_image = results.groupby(by, sort=False, as_index=False)["score"].mean()
    tasks = list(dict.fromkeys(results["task"]))
    present = [c for c in CONDITIONS if c in set(results["condition"])]
    with styled():
        fig, ax = plt.subplots(figsize=(8, 3.2))
        sns.barplot(
            data=by_image.replace({"condition": CONDITION_NAMES}),
            x="task",
            y="score",
            hue="condition",
            order=tasks,
            hue_order=[CONDITION_NAMES[c] for c in present],
            palette=[CONDITIONS[c] for c in present],
            saturation=1,
            errorbar=("ci", 95),
            seed=0,
            err_kws={"color": "#222222", "linewidth": 1},
            ax=ax,
        )
        ax.get_legend().remove()
        for i, task in enumerate(tasks):
            if chances and task in chances:
                line = {"colors": "#000000", "linestyles": "dotted", "label": "chance"}
                ax.hlines(chances[task], i - 0.45, i + 0.45, **line)
        ax.set(ylim=(0, 1.05), ylabel="mean score", xlabel="")
        finish(fig, [ax], title, "lines on bars: 95% interval of the mean, by image")
    return fig


def layer_axis_name(metric: str) -> str:
    """What the depth axis counts: states lie between layers, updates and angles at them."""
    return "layer" if metric in UPDATE_METRICS else "layer (state going in)"


def _curve(table: pd.DataFrame, metric: str, modality: str) -> pd.DataFrame:
    """Rows of one curve, by layer, as ``draw`` takes them."""
    keep = table["metric"] == metric
    if "modality" in table:
        keep &= table["modality"] == modality
    rows = table[keep].dropna(subset=["mean"]).sort_values("layer")
    return rows.rename(columns={"layer": "x"})


def _nulls(ax: Axes, metric: str) -> None:
    """Reference lines with their meaning beside them, clear of the curves."""
    for value, text in NULLS.get(metric, ()):
        ax.axhline(value, color="#444444", lw=0.8, ls=":")
        style = {"va": "center", "fontsize": 7.5, "color": "#444444"}
        ax.annotate(text, (1.02, value), xycoords=("axes fraction", "data"), **style)


def _mark(ax: Axes, layer: float) -> None:
    """The stabilisation layer of the image tokens."""
    blue, label = COLOURS["image"], "image tokens settled from here (l*)"
    ax.axvline(layer, color=blue, lw=1, ls="-.", label=label)
    at_the_axis = {"clip_on": False, "transform": ax.get_xaxis_transform()}
    ax.plot([layer], [0], marker="^", ms=7, color=blue, **at_the_axis)
