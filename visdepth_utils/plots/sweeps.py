"""Figures of truncation, for C4: what is left at each depth, by task, token and meaning."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visdepth_utils.plots.bands import LEAST_KL, bands, draw, gains, need, retention
from visdepth_utils.plots.style import WIDE_INCHES, finish, panels, styled

TASK_COLOURS = {"mcq": "#009E73", "vqa": "#56B4E9", "chart": "#CC79A7", "caption": "#7B3294"}
TASK_COLOURS |= {"direct": "#0072B2", "short": "#009E73", "long": "#7B3294"}
"""Of tasks, and of the styles of one task; the two are never in one figure."""
MORE_COLOURS = ("#A6761D", "#1B7837", "#E7298A", "#000000")
MODE_STYLES = {
    ("remove", "masked"): ("#0072B2", "remove: gone, positions kept", "-"),
    ("remove", "physical"): ("#000000", "remove, rows really dropped", ":"),
    ("renumber", "masked"): ("#D55E00", "renumber: gone, positions closed up", "--"),
    ("freeze", "masked"): ("#009E73", "freeze: kept as they are, still read", "-"),
}
"""Mode and implementation -> colour, name and line; curves that coincide stay visible."""
READ_OR_PROCESS = {
    "freeze": ("#009E73", "read but not processed from d on (frozen)", {}),
    "remove": ("#0072B2", "neither read nor processed from d on (removed)", {"ls": "--"}),
    "freeze other image": ("#D55E00", "control: another picture's states frozen", {"marker": "x"}),
    "freeze noise": ("#777777", "control: noise frozen", {"marker": "+"}),
}
TEXT_SCORES = {"chrf": "#882255", "rouge": "#44AA99", "bleu": "#999933"}
DEPTH_AXIS = "layers that see the image (d)"
WIDEST_SHARES = (-1.0, 2.0)
"""Bands of ratios are cut here, where a small gain makes them huge; the curves are never cut."""
SWEEP = {"image", "task", "mode", "implementation", "depth", "correct", "same"}
TOKENS = {"sample", "image", "task", "mode", "depth", "kl", "same_top1"}


def retention_curves(
    sweep: pd.DataFrame,
    *,
    conditions: pd.DataFrame | None = None,
    texts: Sequence[str] = ("caption",),
) -> Figure:
    """What is left at each depth: share of the gain of all tasks, score of each, likeness of texts.

    A task without a clear gain by the picture has no share, and is named as such; so is one whose
    gain is not known (one image, or no score without the picture). ``sweep``: ``truncation_sweep``
    of one mode, with answers. ``conditions``: ``evaluate`` without the picture and with another
    one, on the same samples (ValueError if images are missing); without it the floor of the gain is
    depth 0. ``texts``: tasks whose BLEU, ROUGE-L and chrF are drawn, against the reference and
    against the full model's own output.
    """
    need(sweep, SWEEP, "sweep", "truncation_sweep", "mode", "implementation")
    _need_answers(sweep, "sweep")
    tasks = list(dict.fromkeys(sweep["task"]))
    drawn = [t for t in texts if t in tasks and "chrf_full" in sweep]
    # Before a figure is opened: an error would leave it open.
    levels = {
        (task, name): _condition(conditions, sweep[sweep["task"] == task], name)
        for task in tasks
        for name in ("blind", "other")
    }
    with styled():
        fig, axes = _one_large(len(tasks) + len(drawn))
        _shares(axes[0], sweep, levels, tasks)
        for ax, task in zip(axes[1:], tasks, strict=False):
            own = sweep[sweep["task"] == task]
            draw(ax, bands(own, "depth", "correct"), _colour(task, tasks), task)
            for name, dots in (("blind", ":"), ("other", "--")):
                level = levels[task, name]["score"].mean()
                if np.isfinite(level):
                    label = {"blind": "no picture", "other": "another picture"}[name]
                    ax.axhline(level, color="#444444", ls=dots, lw=1.2, label=label)
            ax.set(title=f"{task}: score")
        for ax, task in zip(axes[1 + len(tasks) :], drawn, strict=False):
            own = sweep[sweep["task"] == task]
            for name, colour in TEXT_SCORES.items():
                draw(ax, bands(own, "depth", name), colour, f"{name}, reference")
                full = bands(own, "depth", f"{name}_full")
                draw(ax, full, colour, f"{name}, full model's text", marker="x", ls="--")
            ax.set(title=f"{task}: likeness of texts")
        for ax in axes[1:]:
            ax.set(ylim=(-0.05, 1.05))
        finish(fig, axes, "")
    return fig


def _one_large(n: int) -> tuple[Figure, list[Axes]]:
    """The panel that is the figure, and n small ones beside it."""
    rows = n if n < 4 else -(-n // 2)
    columns = -(-n // rows)
    fig = plt.figure(figsize=(4.8 + 2.2 * columns, max(4.2, 1.75 * rows)))
    grid = fig.add_gridspec(rows, 2 + columns, width_ratios=[2.2, 2.2, *[2.0] * columns])
    axes = [fig.add_subplot(grid[:, :2])]
    axes += [fig.add_subplot(grid[i // columns, 2 + i % columns]) for i in range(n)]
    for ax in axes:
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_xlabel(DEPTH_AXIS)
    for ax in axes[1:]:
        ax.set_xlabel("d")
    return fig, axes


def kl_by_depth(token_kl: pd.DataFrame) -> Figure:
    """Divergence per answer token under teacher forcing, by depth and task, of one mode.

    Nats per token, and share of tokens whose most probable one changed, averaged over the tokens of
    an answer first. The last depth is the full model, 0 by definition, and not drawn; ValueError
    where it is the only one.
    """
    need(token_kl, TOKENS, "token_kl", "token_kl", "mode")
    below = token_kl[token_kl["depth"] < token_kl["depth"].max()]
    if below.empty:
        raise ValueError("token_kl holds one depth: measure several, the last being the full model")
    below = below.assign(changed=1 - below["same_top1"].astype(float))
    keys = ["task", "image", "sample", "depth"]
    below = below.groupby(keys, sort=False, as_index=False)[["kl", "changed"]].mean()
    tasks = list(dict.fromkeys(token_kl["task"]))
    with styled():
        fig, axes = panels(2, size=WIDE_INCHES, xlabel=DEPTH_AXIS)
        for task in tasks:
            own = below[below["task"] == task]
            colour = _colour(task, tasks)
            draw(axes[0], bands(own, "depth", "kl"), colour, task, least=LEAST_KL)
            draw(axes[1], bands(own, "depth", "changed"), colour, task)
        axes[0].set(title="divergence per token (nats)", yscale="log")
        axes[1].set(title="tokens that change", ylim=(-0.03, 1.03))
        finish(fig, axes, "")
    return fig


def modes_compared(table: pd.DataFrame) -> Figure:
    """Score and unchanged answers by depth, for each meaning of truncation, of one task."""
    need(table, SWEEP, "table", "truncation_sweep", "task")
    _need_answers(table, "table")
    task = table["task"].iloc[0]
    with styled():
        fig, axes = panels(2, size=WIDE_INCHES, xlabel=DEPTH_AXIS)
        groups = dict(list(table.groupby(["mode", "implementation"], sort=False)))
        order = [key for key in MODE_STYLES if key in groups]
        for mode, kind in [*order, *(key for key in groups if key not in MODE_STYLES)]:
            rows = groups[mode, kind]
            unknown = ("#777777", f"{mode}, {kind}", "-")
            colour, label, line = MODE_STYLES.get((mode, kind), unknown)
            marker = "" if kind == "physical" else "o"
            for ax, value in zip(axes, ("correct", "same"), strict=True):
                draw(ax, bands(rows, "depth", value), colour, label, marker=marker, ls=line)
        for ax, title in zip(axes, ("score", "the full model's very answer"), strict=True):
            ax.set(title=f"{task}: {title}", ylim=(-0.05, 1.05))
        finish(fig, axes, "")
    return fig


def read_or_process(
    sweep: pd.DataFrame, conditions: pd.DataFrame | None = None, *, margin: float = 0.1
) -> Figure:
    """Share of the gain kept when image tokens are frozen and when they are removed, by depth.

    One panel per task; a task without a clear gain by the picture says so. ``sweep``:
    ``truncation_sweep`` in modes ``"freeze"`` and ``"remove"``, each with depth L; controls of
    freezing are drawn where they are there. ``conditions``: ``evaluate`` without the picture;
    without it the floor is depth 0 of "remove". ``margin``: loss that does not count; its line is
    drawn.
    """
    need(sweep, SWEEP, "sweep", "truncation_sweep")
    _need_answers(sweep, "sweep")
    tasks = list(dict.fromkeys(sweep["task"]))
    removed = sweep[sweep["mode"] == "remove"]
    floors = {t: _condition(conditions, sweep[sweep["task"] == t], "blind") for t in tasks}
    with styled():
        columns = min(len(tasks), 2)
        fig, axes = panels(len(tasks), columns, xlabel="depth d", sharey=True)
        for ax, task in zip(axes, tasks, strict=True):
            floor = _or_depth_0(floors[task], removed[removed["task"] == task])
            for mode, (colour, label, line) in READ_OR_PROCESS.items():
                own = sweep[(sweep["task"] == task) & (sweep["mode"] == mode)]
                curve = retention(own, floor) if len(own) else pd.DataFrame()
                if "control" in label and len(curve):
                    curve = curve[curve["x"] < sweep["depth"].max()]
                draw(ax, curve, colour, label, **line)
            if not ax.lines:
                ax.text(0.5, 0.5, "no clear gain by the picture", ha="center", color="#444444")
            ax.axhline(1 - margin, color="#444444", lw=0.8, ls=":", label=f"{1 - margin:.0%} kept")
            ax.set(title=task, ylim=(-0.15, 1.15), xlim=(-0.3, sweep["depth"].max() + 0.3))
        for ax in axes[::columns]:
            ax.set_ylabel("share of the gain that is left")
        finish(fig, axes, "")
    return fig


def _shares(
    ax: Axes, sweep: pd.DataFrame, levels: dict[tuple[str, str], pd.DataFrame], tasks: list[str]
) -> None:
    """Share of the gain that is left, all tasks in one panel."""
    without: dict[str, list[str]] = {"no clear gain by the picture": [], "gain not known": []}
    low, high = -0.05, 1.05
    for task in tasks:
        own = sweep[sweep["task"] == task]
        floor = _or_depth_0(levels[task, "blind"], own)
        gained = gains(own, floor)
        if not gained:
            why = "gain not known" if gained is None else "no clear gain by the picture"
            without[why].append(task)
            continue
        curve = retention(own, floor)
        draw(ax, curve, _colour(task, tasks), task)
        least, most = WIDEST_SHARES
        low = min(low, curve["mean"].min() - 0.05, max(curve["lo"].min(), least) - 0.05)
        high = max(high, curve["mean"].max() + 0.05, min(curve["hi"].max(), most) + 0.05)
    ax.axhline(0, color="#444444", lw=0.8, ls=":")
    ax.set(title="share of the gain that is left", ylim=(low, high))
    if text := "\n".join(f"{why}:\n{', '.join(names)}" for why, names in without.items() if names):
        # Curves rise to the right: the upper left corner is free.
        place = {"transform": ax.transAxes, "ha": "left", "va": "top"}
        ax.text(0.03, 0.9, text, fontsize=8, color="#444444", **place)


def _need_answers(table: pd.DataFrame, name: str) -> None:
    """Refuse a sweep of divergences only: nothing of it can be drawn here."""
    if table["correct"].isna().all():
        raise ValueError(f"{name} has no answers: run truncation_sweep with max_new_tokens above 0")


def _condition(conditions: pd.DataFrame | None, own: pd.DataFrame, name: str) -> pd.DataFrame:
    """Scores under a condition, on the images of one task's sweep; empty if not measured."""
    if conditions is None:
        return pd.DataFrame(columns=["image", "score"])
    need(conditions, {"image", "task", "condition", "score"}, "conditions", "evaluate")
    task, images = own["task"].iloc[0], own["image"].unique()
    given = conditions[(conditions["task"] == task) & (conditions["condition"] == name)]
    lacking = len(set(images) - set(given["image"]))
    if len(given) and lacking:
        raise ValueError(
            f"condition {name!r} of task {task!r} lacks {lacking} of {len(images)} images: "
            "evaluate the samples of the sweep"
        )
    return given[given["image"].isin(images)]


def _or_depth_0(floor: pd.DataFrame, sweep: pd.DataFrame) -> pd.DataFrame:
    """Scores without the picture: as measured, else those of the sweep at depth 0."""
    return sweep[sweep["depth"] == 0].rename(columns={"correct": "score"}) if floor.empty else floor


def _colour(task: str, tasks: Sequence[str]) -> str:
    others = [t for t in tasks if t not in TASK_COLOURS]
    return TASK_COLOURS.get(task) or MORE_COLOURS[others.index(task) % len(MORE_COLOURS)]
