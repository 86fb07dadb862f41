"""Figures of truncation, for C4: what is left at each depth, by task, token and meaning.

Same style as ``plots``: a closed ``Figure`` is returned. Bands are 95% intervals by image.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visdepth_utils.bands import LEAST_KL, bands, draw, need, retention
from visdepth_utils.plots import PANEL_INCHES, _finish, _style

__all__ = ["kl_by_depth", "modes_compared", "retention_curves"]

TASK_COLOURS = {"mcq": "#009E73", "vqa": "#56B4E9", "chart": "#CC79A7", "caption": "#7B3294"}
MORE_COLOURS = ("#A6761D", "#1B7837", "#E7298A", "#000000")
MODE_STYLES = {
    ("remove", "masked"): ("#0072B2", "remove: gone, positions kept"),
    ("remove", "physical"): ("#000000", "remove, rows really dropped"),
    ("renumber", "masked"): ("#D55E00", "renumber: gone, positions closed up"),
    ("freeze", "masked"): ("#009E73", "freeze: kept as they are, still read"),
}
TEXT_SCORES = {"chrf": "#882255", "rouge": "#44AA99", "bleu": "#999933"}
DEPTH_AXIS = "layers that see the image (d)"
SWEEP = {"image", "task", "mode", "implementation", "depth", "correct", "same"}


def retention_curves(
    sweep: pd.DataFrame,
    *,
    conditions: pd.DataFrame | None = None,
    texts: Sequence[str] = ("caption",),
) -> Figure:
    """What is left at each depth: share of the gain of all tasks, score of each, likeness of texts.

    Args:
        sweep: ``truncation_sweep`` of one mode and any tasks, with answers.
        conditions: ``evaluate`` without the picture and with another one, on the same samples;
            without it the floor of the gain is depth 0.
        texts: Tasks whose BLEU, ROUGE-L and chrF are drawn, against the reference and against the
            full model's own output.

    Returns:
        The figure. A task that gains nothing from the picture has no share, and is named as such.

    Raises:
        ValueError: If a column is missing, there are no rows, or several modes.
    """
    need(sweep, SWEEP, "sweep", "truncation_sweep")
    if sweep[["mode", "implementation"]].drop_duplicates().shape[0] > 1:
        raise ValueError("sweep holds several modes: pass the rows of one")
    tasks = list(dict.fromkeys(sweep["task"]))
    drawn = [t for t in texts if t in tasks and "chrf_full" in sweep]
    panels, columns = 1 + len(tasks) + len(drawn), 3
    with _style():
        rows = -(-panels // columns)
        size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows)
        fig, grid = plt.subplots(rows, columns, figsize=size, squeeze=False)
        axes = list(grid.ravel())
        for ax in axes[panels:]:
            ax.remove()
        _shares(axes[0], sweep, conditions, tasks)
        for ax, task in zip(axes[1:], tasks, strict=False):
            own = sweep[sweep["task"] == task]
            draw(ax, bands(own, "depth", "correct"), _colour(task, tasks), task)
            for name, dots in (("blind", ":"), ("other", "--")):
                level = _condition(conditions, task, name)["score"].mean()
                if np.isfinite(level):
                    label = {"blind": "no picture", "other": "another picture"}[name]
                    ax.axhline(level, color="#444444", ls=dots, lw=1.2, label=label)
            ax.set(title=f"{task}: score")
        for ax, task in zip(axes[1 + len(tasks) :], drawn, strict=False):
            own = sweep[sweep["task"] == task]
            for name, colour in TEXT_SCORES.items():
                draw(ax, bands(own, "depth", name), colour, f"{name}, reference")
                full = bands(own, "depth", f"{name}_full")
                draw(ax, full, colour, f"{name}, full model's text", marker="", ls="--")
            ax.set(title=f"{task}: likeness of texts")
        for ax in axes[:panels]:
            ax.set(xlabel=DEPTH_AXIS, ylim=(-0.05, 1.05))
            ax.xaxis.get_major_locator().set_params(integer=True)
        _finish(fig, axes[:panels], "")
    return fig


def kl_by_depth(token_kl: pd.DataFrame) -> Figure:
    """Divergence per answer token under teacher forcing, by depth and task.

    Args:
        token_kl: ``token_kl`` of one mode and any tasks.

    Returns:
        The figure: nats per token, and share of tokens whose most probable one changed. The last
        depth is the full model, 0 by definition, and not drawn.

    Raises:
        ValueError: If a column is missing or there are no rows.
    """
    need(token_kl, {"image", "task", "depth", "kl", "same_top1"}, "token_kl", "token_kl")
    below = token_kl[token_kl["depth"] < token_kl["depth"].max()]
    below = below.assign(changed=1 - below["same_top1"].astype(float))
    tasks = list(dict.fromkeys(token_kl["task"]))
    with _style():
        size = (2.7 * PANEL_INCHES[0], PANEL_INCHES[1] + 0.3)
        fig, axes = plt.subplots(1, 2, figsize=size)
        for task in tasks:
            own = below[below["task"] == task]
            colour = _colour(task, tasks)
            draw(axes[0], bands(own, "depth", "kl"), colour, task, least=LEAST_KL)
            draw(axes[1], bands(own, "depth", "changed"), colour, task)
        axes[0].set(title="divergence per token (nats)", yscale="log")
        axes[1].set(title="tokens that change", ylim=(-0.03, 1.03))
        for ax in axes:
            ax.set(xlabel=DEPTH_AXIS)
            ax.xaxis.get_major_locator().set_params(integer=True)
        _finish(fig, axes, "")
    return fig


def modes_compared(table: pd.DataFrame) -> Figure:
    """Score and unchanged answers by depth, for each meaning of truncation.

    Args:
        table: ``truncation_sweep`` of one task, in several modes and implementations.

    Returns:
        The figure.

    Raises:
        ValueError: If a column is missing, there are no rows, or several tasks.
    """
    need(table, SWEEP, "table", "truncation_sweep")
    if table["task"].nunique() > 1:
        raise ValueError("table holds several tasks: pass the rows of one")
    task = table["task"].iloc[0]
    with _style():
        size = (2.7 * PANEL_INCHES[0], PANEL_INCHES[1] + 0.3)
        fig, axes = plt.subplots(1, 2, figsize=size)
        for (mode, kind), rows in table.groupby(["mode", "implementation"], sort=False):
            colour, label = MODE_STYLES.get((mode, kind), ("#777777", f"{mode}, {kind}"))
            dropped = {"ls": ":", "marker": ""} if kind == "physical" else {}
            for ax, value in zip(axes, ("correct", "same"), strict=True):
                draw(ax, bands(rows, "depth", value), colour, label, **dropped)
        for ax, title in zip(axes, ("score", "the full model's very answer"), strict=True):
            ax.set(title=f"{task}: {title}", xlabel=DEPTH_AXIS, ylim=(-0.05, 1.05))
            ax.xaxis.get_major_locator().set_params(integer=True)
        _finish(fig, axes, "")
    return fig


def _shares(
    ax: Axes, sweep: pd.DataFrame, conditions: pd.DataFrame | None, tasks: list[str]
) -> None:
    """Share of the gain that is left, all tasks in one panel."""
    without = []
    for task in tasks:
        own = sweep[sweep["task"] == task]
        floor = _condition(conditions, task, "blind")
        if floor.empty:
            floor = own[own["depth"] == 0].rename(columns={"correct": "score"})
        curve = retention(own, floor)
        without += [task] if curve.empty else []
        draw(ax, curve, _colour(task, tasks), task)
    ax.axhline(0, color="#444444", lw=0.8, ls=":")
    ax.set(title="share of the gain that is left")
    if without:
        text = "no gain by the picture:\n" + ", ".join(without)
        ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", fontsize=8, color="#444444")


def _condition(conditions: pd.DataFrame | None, task: str, name: str) -> pd.DataFrame:
    if conditions is None:
        return pd.DataFrame(columns=["image", "score"])
    need(conditions, {"image", "task", "condition", "score"}, "conditions", "evaluate")
    return conditions[(conditions["task"] == task) & (conditions["condition"] == name)]


def _colour(task: str, tasks: Sequence[str]) -> str:
    others = [t for t in tasks if t not in TASK_COLOURS]
    return TASK_COLOURS.get(task) or MORE_COLOURS[others.index(task) % len(MORE_COLOURS)]
