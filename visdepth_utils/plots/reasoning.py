"""Figures of chains, for C5 and C7: how far they and answers move, and what a longer one costs."""

import html
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from visdepth_utils.claims.bootstrap import cluster_bootstrap
from visdepth_utils.measure.chains import words
from visdepth_utils.plots.bands import band_table, bands, draw, draw_dot, need
from visdepth_utils.plots.style import WIDE_INCHES, finish, panels, styled
from visdepth_utils.plots.sweeps import DEPTH_AXIS, TASK_COLOURS

SIDES = {"edit": ("#7B3294", "chain"), "flip": ("#E69F00", "final answer")}
COMPARED = {"sample", "image", "depth", "control", "edit", "edit_chance", "flip", "flip_chance"}
FORCED = {"changed_chain", "changed_answer", "answer_kept"}


def distance_curves(compared: pd.DataFrame) -> Figure:
    """Distance to the full model's output by depth: in shares that mislead, and over chance.

    Left: share of chains and of answers that change at all. Right: distance over chance; markers at
    the right edge are the whole model with a picture shifted by one pixel and with another picture.
    ``compared``: ``chains.compare`` of one mode, its controls among the rows.
    """
    need(compared, COMPARED | {"mode"}, "compared", "chains.compare", "mode")
    plain = compared[compared["control"] == ""].assign(
        moved=lambda rows: (rows["edit"] > 0).astype(float)
    )
    with styled():
        fig, axes = panels(2, size=WIDE_INCHES, xlabel=DEPTH_AXIS)
        for name, (colour, label) in SIDES.items():
            share = bands(plain, "depth", "moved" if name == "edit" else name)
            draw(axes[0], share, colour, label)
            draw(axes[1], corrected(plain, name, "depth"), colour, label)
        last = plain["depth"].max()
        for at, control, marker in ((0.6, "one pixel", "s"), (1.2, "another picture", "^")):
            rows = compared[compared["control"] == control]
            for name, (colour, _) in SIDES.items() if len(rows) else ():
                row = corrected(rows, name, "control").iloc[0]
                draw_dot(axes[1], last + at, row, color=colour, fmt=marker, ms=4)
            if len(rows):
                axes[1].plot([], [], "k", ls="", marker=marker, ms=4, label=f"whole, {control}")
        axes[0].set(title="share that changes at all (misleads)", ylim=(-0.05, 1.05))
        axes[1].set(title="distance over chance")
        axes[1].axhline(1, color="#444444", lw=0.8, ls=":", label="no more alike than unrelated")
        finish(fig, axes, "")
    return fig


def token_changes(compared: pd.DataFrame) -> Figure:
    """What changes token by token where both models have read the same text, and what of answers.

    Left: share of tokens whose most probable one is another, in chain and answer. Right: answers
    that change in all, and those that change with the full model's chain given (the direct effect;
    the rest goes through the chain). The table is that of ``distance_curves``.
    """
    need(compared, COMPARED | FORCED | {"mode"}, "compared", "chains.compare", "mode")
    plain = compared[compared["control"] == ""]
    plain = plain.assign(direct=1 - plain["answer_kept"])
    with styled():
        fig, axes = panels(2, size=WIDE_INCHES, xlabel=DEPTH_AXIS)
        for name, side in (("changed_chain", "edit"), ("changed_answer", "flip")):
            colour, label = SIDES[side]
            draw(axes[0], bands(plain, "depth", name), colour, label)
        draw(axes[1], bands(plain, "depth", "flip"), SIDES["flip"][0], "answer, own chain")
        given = bands(plain, "depth", "direct")
        draw(axes[1], given, "#0072B2", "answer, full model's chain given", ls="--")
        axes[0].set(title="tokens that change, same text read", ylim=(-0.03, 1.03))
        axes[1].set(title="answers that change", ylim=(-0.03, 1.03))
        finish(fig, axes, "")
    return fig


def score_by_compute(sweep: pd.DataFrame) -> Figure:
    """Score against depth, and against what an answer costs, one curve per style.

    ``sweep``: ``costs.with_token_layers`` of ``truncation_sweep`` in several styles, one mode. Each
    point is a depth; to the right is dearer.
    """
    columns = {"image", "style", "mode", "depth", "correct", "token_layers"}
    need(sweep, columns, "sweep", "compute.with_token_layers", "mode")
    with styled():
        fig, axes = panels(2, size=WIDE_INCHES, xlabel=DEPTH_AXIS)
        for i, (style, rows) in enumerate(sweep.groupby("style", sort=False)):
            colour = TASK_COLOURS.get(style, f"C{i}")
            curve = bands(rows, "depth", "correct")
            draw(axes[0], curve, colour, style)
            cost = rows.groupby("depth")["token_layers"].mean()
            draw(axes[1], curve.assign(x=cost.reindex(curve["x"]).to_numpy()), colour, style)
        axes[0].set(title="score", ylim=(-0.05, 1.05))
        axes[1].set(title="score", ylim=(-0.05, 1.05), xlabel="token-layers of an answer")
        finish(fig, axes, "")
    return fig


def corrected(rows: pd.DataFrame, name: str, x: str) -> pd.DataFrame:
    """Distance over chance at each x: ratio of means, bounds by image; 0 where nothing changes.

    ``name`` is ``"edit"``, ``"steps"`` or ``"flip"``. NaN where no image has a value at every x, as
    among a few images that share no question. Columns ``x, mean, lo, hi``, sorted by x.
    """
    tables = []
    for value in (name, f"{name}_chance"):
        cells = rows.groupby(["image", x])[value].mean().unstack(x)
        tables.append(cells.reindex(rows["image"].unique()))
    whole = tables[0].notna().all(axis=1) & tables[1].notna().all(axis=1)
    if not whole.any():
        nothing = pd.DataFrame({"x": tables[0].columns})
        return nothing.assign(mean=np.nan, lo=np.nan, hi=np.nan)
    tables = [table[whole] for table in tables]

    def ratio(top: np.ndarray, chance: np.ndarray) -> np.ndarray:
        return np.where(top == 0, 0.0, top / np.where(chance == 0, np.nan, chance))

    found = cluster_bootstrap(tuple(t.to_numpy(float) for t in tables), tables[0].index, ratio)
    return band_table(tables[0].columns, found)


def chains_page(
    compared: pd.DataFrame, prompts: dict[str, str], depths: Sequence[int], n: int = 3
) -> HTML:
    """Chains of n samples side by side, words that differ from the full model's highlighted.

    Samples whose chains change at one of these depths come first, in the order of the table.
    ``prompts``: sample id -> what was asked. ValueError: a column is missing, or no row has one of
    the depths.
    """
    need(compared, COMPARED | {"output"}, "compared", "chains.compare")
    plain = compared[compared["control"] == ""]
    last = int(plain["depth"].max())
    if lacking := set(depths) - set(plain["depth"]):
        raise ValueError(f"depth {min(lacking)} was not measured: choose of 0..{last}")
    shown = plain[plain["depth"].isin(depths)]
    moved = shown.groupby("sample", sort=False)["edit"].sum() > 0
    chosen = [*moved[moved].index, *moved[~moved].index][:n]
    cell = "padding:2px 10px;text-align:left;vertical-align:top"
    parts = []
    for name in chosen:
        rows = plain[plain["sample"] == name].set_index("depth")["output"]
        parts.append(
            f'<tr><th colspan="2" style="{cell};border-top:1px solid #999">'
            f"{html.escape(prompts[name])}</th></tr>"
        )
        for depth in (last, *sorted(set(depths) - {last}, reverse=True)):
            label = f"d = {depth}" + (" (whole)" if depth == last else "")
            text = _marked(rows[last], rows[depth])
            parts.append(f'<tr><td style="{cell}">{label}</td><td style="{cell}">{text}</td></tr>')
    return HTML(f'<table style="max-width:70em">{"".join(parts)}</table>')


def _marked(full: str, other: str) -> str:
    """The words of ``other``, those that are not the full model's in bold on yellow."""
    a, b = words(full), words(other)
    out = []
    for kind, _, _, start, end in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if text := html.escape(" ".join(b[start:end])):
            style = "background:#ffe08a;color:#000;font-weight:bold"
            out.append(text if kind == "equal" else f'<span style="{style}">{text}</span>')
        elif kind == "delete":
            out.append('<span style="background:#ffe08a;color:#000">&middot;</span>')
    return " ".join(out) or "<i>nothing</i>"
