"""What image tokens say at each depth: words on a picture's patches, and how many are right."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image

from visdepth_utils.claims.bootstrap import cluster_bootstrap
from visdepth_utils.data.worlds.truth import Held
from visdepth_utils.measure.token_lens import covered
from visdepth_utils.plots.bands import bands, draw, need
from visdepth_utils.plots.style import COLOURS, finish, panels, styled

LENSES = {"text": (COLOURS["image"], "nearest text state"), "logit": ("#E69F00", "logit lens")}
WORDS = {
    True: (COLOURS["image"], "bold"),
    False: ("#333333", "normal"),
    None: ("#8a8a8a", "normal"),
}
"""Colour and weight of a word that names what the patch holds, one that does not, and where no
object lies."""
SAID = {"layer", "token", "row", "column", "lens", "words"}
SHARES = {"image", "layer", "lens", "labels", "value"}
PANEL = (3.6, 3.4)


def said_by_depth(
    table: pd.DataFrame,
    picture: Image.Image,
    shares: pd.DataFrame | None = None,
    held: Sequence[Held] = (),
    *,
    layers: Sequence[int] | None = None,
    lens: str = "text",
) -> Figure:
    """A picture with the nearest word on each patch at some depths, and the shares of all pictures.

    Args:
        table: ``token_lens`` of one sample, whose tokens have a place in the picture.
        picture: The sample's.
        shares: ``named_share`` of all samples, drawn beside by depth, with 95% bands by image and
            chance; left out where empty.
        held: What the picture holds: words that name it are bold.
        layers: Which depths; None for the first state that is read and the last.
        lens: Which lens the words are of.

    Raises:
        ValueError: A missing column, several samples, or tokens without a place.
    """
    need(table, SAID | {"sample"}, "table", "token_lens", "sample")
    if table["row"].isna().any():
        raise ValueError("where the tokens lie in the picture is not known: nothing to draw")
    last = int(table["layer"].max())
    layers = [0, last - 1] if layers is None else list(layers)
    drawn = shares is not None and len(shares) > 0
    rows = table[table["lens"] == lens]
    with styled():
        fig, axes = panels(len(layers) + drawn, 3, size=PANEL)
        for ax, layer in zip(axes, layers, strict=False):
            _words(ax, rows[rows["layer"] == layer], picture, held)
            ax.set(title=f"state going into layer {layer}")
        if drawn:
            _shares(axes[-1], shares)
        finish(fig, axes, "", f"words: {LENSES[lens][1]}")
    return fig


def still_said(shares: pd.DataFrame, lens: str = "text") -> str:
    """Whether deep states still name what their patches hold, in one sentence.

    Compared are the states read by the first and by the last third of the layers: share of tokens
    minus chance, mean over these layers, with 95% intervals by image. ``shares``: ``named_share``.
    """
    own = shares[shares["lens"] == lens]
    if own.empty:
        return "What the patches of these pictures hold is not known: no share can be told."
    wide = own.pivot_table(index=["image", "layer"], columns="labels", values="value")
    gain = (wide["own"] - wide["other pictures"]).unstack("layer")
    last = int(own["layer"].max())
    early, deep = (range(-(-last // 3)), range(2 * last // 3, last))
    tables = tuple(gain[list(some)].mean(axis=1).to_numpy()[:, None] for some in (early, deep))
    found = [cluster_bootstrap(t, gain.index) for t in tables]
    change = cluster_bootstrap(tables, gain.index, lambda a, b: b - a)
    said = [
        f"{float(f.estimate[0]):.2f} [{float(f.lo[0]):.2f}, {float(f.hi[0]):.2f}]" for f in found
    ]
    where = [f"layers {some[0]} to {some[-1]}" for some in (early, deep)]
    named = "name what their patches hold"
    if found[1].lo[0] <= 0:
        answer = f"do not clearly {named}"
    elif change.hi[0] < 0:
        answer = f"still {named}, but less often than early ones"
    elif change.lo[0] > 0:
        answer = f"{named} more often than early ones"
    else:
        answer = f"still {named}; whether they do so less often than early ones is not clear"
    return (
        f"Deep image states {answer}: {said[1]} of the tokens above chance in {where[1]}, "
        f"{said[0]} in {where[0]} ({len(gain)} pictures)."
    )


def _words(ax: Axes, rows: pd.DataFrame, picture: Image.Image, held: Sequence[Held]) -> None:
    """One picture, faded, with a word on each patch."""
    high, wide = int(rows["row"].max()) + 1, int(rows["column"].max()) + 1
    ax.imshow(picture, extent=(0, wide, high, 0), alpha=0.5, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    holds = covered(held, high, wide) if held else [[]] * len(rows)
    for token, row, column, words in rows[["token", "row", "column", "words"]].itertuples(False):
        names = {word for k in holds[token] for word in held[k].words}
        colour, weight = WORDS[words[0] in names if names else None]
        size = min(5.5, 36 / max(len(words[0]), 1))
        style = {"fontsize": size, "color": colour, "weight": weight, "parse_math": False}
        style |= {"ha": "center", "va": "center"}
        text = ax.text(column + 0.5, row + 0.5, words[0][:9], **style)
        text.set_path_effects([withStroke(linewidth=1.2, foreground="white")])
    for right, label in ((True, "names what lies there"), (False, "names something else")):
        if held:
            ax.add_line(Line2D([], [], color=WORDS[right][0], marker="s", ls="", label=label))


def _shares(ax: Axes, shares: pd.DataFrame) -> None:
    """Share of tokens that name what lies there, by depth."""
    need(shares, SHARES, "shares", "named_share")
    for lens, (colour, label) in LENSES.items():
        for labels, own in (("own", True), ("other pictures", False)):
            rows = shares[(shares["lens"] == lens) & (shares["labels"] == labels)]
            curve = bands(rows, "layer", "value")
            name = label if own else f"{label}: chance, objects of other pictures"
            draw(ax, curve, colour, name, control=not own)
    ax.set(title="tokens that name what lies there", ylim=(-0.03, 1.03), xlabel="layer")
    ax.set_xticks(np.unique(shares["layer"])[::2])
