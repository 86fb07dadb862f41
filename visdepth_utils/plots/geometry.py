"""Curves of geometry by layer with their nulls, for C1 and C2, and accuracy by task."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visdepth_utils.plots.style import (
    COLOURS,
    CONTROL_DASHES,
    CONTROL_GREYS,
    PANEL_INCHES,
    finish,
    styled,
)

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
LOG_METRICS = {"update_ratio"}
"""Drawn on a logarithmic axis: updates differ by orders of magnitude between layers and models."""


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

    Args:
        bands: Columns ``modality, layer, metric, mean, lo, hi`` (``layer_bands``).
        metrics: Which metrics, in order of the panels.
        controls: Name -> table like ``bands``; only one type of its tokens is drawn.
        control_tokens: Which type.
        stabilises: Metric -> layer l* of the image tokens, marked by a triangle and a line.
        early: Last layer that counts as early; the panel is shaded up to it.
        title: Heading of the figure.

    Raises:
        ValueError: If a column or one of the metrics is missing.
    """
    _check(bands, metrics, "bands")
    for name, table in (controls or {}).items():
        _check(table, metrics, f"control {name!r}")
    with styled():
        fig, axes = plt.subplots(
            1,
            len(metrics),
            figsize=(PANEL_INCHES[0] * len(metrics), PANEL_INCHES[1]),
            squeeze=False,
        )
        for ax, metric in zip(axes[0], metrics, strict=True):
            if early is not None:
                ax.axvspan(
                    0, early, color="#000000", alpha=0.05, lw=0, label="early third of the decoder"
                )
            for i, (name, table) in enumerate((controls or {}).items()):
                _control(ax, table, metric, name, i, control_tokens)
            for modality, colour in COLOURS.items():
                _band(ax, bands, metric, modality, colour)
            _nulls(ax, metric)
            if stabilises and pd.notna(stabilises.get(metric)):
                _mark(ax, float(stabilises[metric]))
            ax.set(xlabel=layer_axis_name(metric), ylabel="", title=LABELS.get(metric, metric))
            ax.xaxis.get_major_locator().set_params(integer=True)
            if metric in LOG_METRICS:
                ax.set_yscale("log")
        finish(fig, axes[0], title)
    return fig


def accuracy_bars(
    results: pd.DataFrame, *, chances: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Draw the score of every task with its picture, without it and with another one.

    ``results``: rows of ``evaluate``. ``chances``: task -> score that is to be had without looking,
    drawn as a dotted line. Lines on the bars: 95% bootstrap interval by image. ValueError: a column
    is missing or a condition is unknown.
    """
    if missing := {"task", "image", "condition", "score"} - set(results.columns):
        raise ValueError(f"results lack {', '.join(sorted(missing))}: build them with evaluate")
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


def _check(table: pd.DataFrame, metrics: Sequence[str], name: str) -> None:
    """Refuse a table that lacks a column or a metric, by name."""
    if missing := BAND_COLUMNS - set(table.columns):
        raise ValueError(
            f"{name} lacks column(s) {', '.join(sorted(missing))}: build it with layer_bands"
        )
    for metric in metrics:
        if metric not in set(table["metric"]):
            raise ValueError(
                f"{name} has no metric {metric!r}: add it to metrics= of layer_geometry"
            )


def _rows(table: pd.DataFrame, metric: str, modality: str) -> pd.DataFrame:
    """Rows of one curve, by layer."""
    keep = table["metric"] == metric
    if "modality" in table:
        keep &= table["modality"] == modality
    return table[keep].dropna(subset=["mean"]).sort_values("layer")


def _band(ax: Axes, table: pd.DataFrame, metric: str, modality: str, colour: str) -> None:
    """One trained curve with its band."""
    rows = _rows(table, metric, modality)
    if rows.empty:
        return
    ax.fill_between(rows["layer"], rows["lo"], rows["hi"], color=colour, alpha=0.2, lw=0)
    sns.lineplot(
        data=rows,
        x="layer",
        y="mean",
        ax=ax,
        color=colour,
        label=f"{modality} tokens",
        legend=False,
        marker="o" if modality == "image" else "s",
        markersize=3.5,
        markeredgewidth=0,
        lw=1.8,
    )


def _control(
    ax: Axes, table: pd.DataFrame, metric: str, name: str, i: int, tokens: str = "image"
) -> None:
    """One control: grey, broken, no markers, so that it never looks like a result."""
    rows = _rows(table, metric, tokens)
    if rows.empty or rows["mean"].isna().all():  # not measured: no name in the legend either
        return
    grey = CONTROL_GREYS[i % len(CONTROL_GREYS)]
    ax.fill_between(rows["layer"], rows["lo"], rows["hi"], color=grey, alpha=0.12, lw=0)
    dashes = CONTROL_DASHES[i % len(CONTROL_DASHES)]
    label = name if name.startswith(tokens) else f"{name}, {tokens}"
    ax.plot(rows["layer"], rows["mean"], color=grey, dashes=dashes, lw=1.4, label=label)


def _nulls(ax: Axes, metric: str) -> None:
    """Reference lines with their meaning beside them, clear of the curves."""
    for value, text in NULLS.get(metric, ()):
        ax.axhline(value, color="#444444", lw=0.8, ls=":")
        ax.annotate(
            text,
            (1.02, value),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7.5,
            color="#444444",
        )


def _mark(ax: Axes, layer: float) -> None:
    """The stabilisation layer of the image tokens."""
    ax.axvline(
        layer, color=COLOURS["image"], lw=1, ls="-.", label="image tokens settled from here (l*)"
    )
    ax.plot(
        [layer],
        [0],
        marker="^",
        ms=7,
        color=COLOURS["image"],
        clip_on=False,
        transform=ax.get_xaxis_transform(),
    )
