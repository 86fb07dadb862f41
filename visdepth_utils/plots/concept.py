"""The small diagram at the top of each notebook: picture, patches, tokens, layers, and the change.

One drawing for all: a token is a row, a layer a column, and each square is the state of a token
between two layers. What a notebook changes or looks at is drawn in ``CHANGE``.
"""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from visdepth_utils.plots.style import COLOURS, styled

__all__ = ["CHANGE", "KINDS", "concept"]

CHANGE = "#8e2f7f"
"""Colour of what a notebook changes or looks at: not that of any token."""
_MUTED, _GONE = "#6b6b6b", "#b8b8b8"
_LAYERS, _CUT = 9, 3
_IMAGE, _TEXT = (9.0, 7.6, 6.2, 4.8), (2.7, 1.3)
_X0, _STEP, _SIDE = 13.2, 1.9, 1.1

KINDS = {
    "start": "A picture becomes image tokens, and every layer rewrites every token",
    "C0": "Removed: nobody reads the image from layer d on. Frozen: it is read, but not rewritten",
    "C1": "Do the states of image tokens change early, and then stay as they are?",
    "C2": "Do the states of text tokens go on changing where image tokens have come to rest?",
    "C3": "The image states of layer a are put in at layer b: does anybody notice?",
    "C4": "From layer d on, image tokens are gone. What is left of one word, and of a text?",
    "C5": "From layer d on, image tokens are gone. Does the chain change more, or the answer?",
    "C6": "From layer d on, image tokens are gone. Can a trained adapter make up for it?",
    "C7": "From layer d on, image tokens are gone. Does a longer chain make up for it?",
    "C8": "From layer d on, image tokens are gone. What does each layer still cost?",
}
"""Which notebook -> the line above its diagram."""


def concept(kind: str) -> Figure:
    """Draw what one notebook (of ``KINDS``) does, on a white card, legible on dark pages too."""
    if kind not in KINDS:
        raise ValueError(f"no diagram {kind!r}: must be one of {', '.join(KINDS)}")
    with styled():
        fig, ax = plt.subplots(figsize=(7.6, 2.85))
        ax.set(xlim=(0, 38.5), ylim=(-2.3, 12.4))
        ax.set_axis_off()
        ax.text(0, 11.7, KINDS[kind], fontsize=10, weight="bold", color="#222222")
        _picture(ax)
        cut = kind not in ("start", "C1", "C2", "C3")
        for layer in range(_LAYERS):
            _column(ax, layer, kind, gone=cut and layer >= _CUT)
        _note(ax, _X0 - 0.2, -1.8, "layer 0", ha="left")
        _note(ax, _x(_LAYERS - 1) + _SIDE, -1.8, "last layer", ha="right")
        if cut:
            x = _x(_CUT) - (_STEP - _SIDE) / 2
            ax.plot([x, x], [-0.6, 10.5], color=CHANGE, lw=1.4, ls="--")
            _note(ax, x, -1.8, "layer d", CHANGE)
        _change(ax, kind)
        fig.subplots_adjust(0.01, 0.01, 0.99, 0.99)
        plt.close(fig)
    return fig


def _x(layer: int) -> float:
    """Left side of a layer's column."""
    return _X0 + _STEP * layer


def _note(ax: Axes, x: float, y: float, text: str, colour: str = _MUTED, **how: str) -> None:
    """Small words, centred unless told otherwise."""
    ax.text(x, y, text, **{"ha": "center", "va": "center", "fontsize": 8, "color": colour, **how})


def _arrow(ax: Axes, start: tuple, end: tuple, colour: str = _MUTED, bend: float = 0) -> None:
    """An arrow between two points."""
    path = f"arc3,rad={bend}"
    ax.add_patch(
        FancyArrowPatch(
            start, end, connectionstyle=path, arrowstyle="-|>", mutation_scale=9, color=colour
        )
    )


def _picture(ax: Axes) -> None:
    """A picture in four patches, and words; then both as tokens."""
    ax.add_patch(Rectangle((0.2, 4.8), 5.4, 5.3, fc="#eef3f7", ec=_MUTED, lw=1))
    ax.add_patch(Circle((1.6, 8.7), 0.8, fc="#c8553d", ec="none"))
    ax.add_patch(Rectangle((3.6, 5.5), 1.4, 1.4, fc="#588157", ec="none"))
    ax.plot([2.9, 2.9], [4.8, 10.1], color=COLOURS["image"], lw=1)
    ax.plot([0.2, 5.6], [7.45, 7.45], color=COLOURS["image"], lw=1)
    ax.text(0.2, 2.1, "What is red?", fontsize=8.5, color="#222222", style="italic")
    _note(ax, 0.2, 3.9, "a picture in patches", ha="left")
    _note(ax, 0.2, 0.9, "and words", ha="left")
    for y in (7.45, 2.3):
        _arrow(ax, (6.1, y), (8.1, y))
    for rows, kind in ((_IMAGE, "image"), (_TEXT, "text")):
        for y in rows:
            ax.add_patch(Rectangle((9.3, y), _SIDE, _SIDE, fc=COLOURS[kind], ec="none"))
    _note(ax, 9.9, 10.8, "image tokens", COLOURS["image"])
    _note(ax, 9.9, 0.4, "text tokens", COLOURS["text"])
    for y in (7.45, 2.6):
        _arrow(ax, (10.9, y), (12.9, y))


def _column(ax: Axes, layer: int, kind: str, gone: bool) -> None:
    """The states of all tokens between two layers."""
    faded = {"C1": "text", "C2": "image"}.get(kind)
    for rows, modality in ((_IMAGE, "image"), (_TEXT, "text")):
        for y in rows:
            place = (_x(layer), y)
            if gone and modality == "image":
                frozen = kind == "C0" and y < _IMAGE[1]  # the lower half of the image tokens
                face = COLOURS["image"] if frozen else "none"
                style = {"fc": face, "ec": COLOURS["image"] if frozen else _GONE}
                style |= {"alpha": 0.55, "hatch": "///"} if frozen else {"ls": ":"}
            else:
                alpha = 0.2 if modality == faded else 1
                style = {"fc": COLOURS[modality], "ec": "none", "alpha": alpha}
            ax.add_patch(Rectangle(place, _SIDE, _SIDE, **style))


def _change(ax: Axes, kind: str) -> None:
    """What this notebook changes or looks at, and what comes out."""
    right = _x(_LAYERS - 1) + _SIDE
    middle = (_x(_CUT) + right) / 2
    if kind in ("C1", "C2"):
        rows = _IMAGE if kind == "C1" else _TEXT
        low, height = rows[-1] - 0.35, rows[0] - rows[-1] + _SIDE + 0.7
        late = (_x(_CUT) - 0.2, right + 0.3, "rests?" if kind == "C1" else "still moves?")
        thirds = [(_x(0) - 0.3, _x(_CUT) - 0.4, "moves"), late][kind == "C2" :]
        for start, end, word in thirds:
            box = Rectangle((start, low), end - start, height, fc="none", ec=CHANGE, lw=1.4)
            ax.add_patch(box)
            y = low + height + 0.6 if kind == "C1" else low - 0.7
            _note(ax, (start + end) / 2, y, word, CHANGE)
    elif kind == "C3":
        for layer, name in ((6, "a"), (3, "b")):
            low, height = _IMAGE[-1] - 0.3, _IMAGE[0] - _IMAGE[-1] + _SIDE + 0.6
            box = Rectangle((_x(layer) - 0.3, low), _SIDE + 0.6, height, fc="none", ec=CHANGE)
            ax.add_patch(box)
            _note(ax, _x(layer) + _SIDE / 2, -1.8, f"layer {name}", CHANGE)
        _arrow(ax, (_x(6) + 0.5, 10.5), (_x(3) + 0.6, 10.5), CHANGE, bend=0.18)
    elif kind == "C0":
        _note(ax, right + 0.6, 8.9, "either removed:\nnobody reads it", CHANGE, ha="left")
        _note(
            ax, right + 0.6, 6.1, "or frozen: the state of\nlayer d, still read", CHANGE, ha="left"
        )
    elif kind not in ("start", "C8"):
        _note(ax, middle, 7.5, "removed", CHANGE, fontsize=10)
    if kind in ("C6", "C8"):
        for layer in range(_LAYERS):
            height = 0.5 if kind == "C6" or layer >= _CUT else 1.6
            bar = Rectangle((_x(layer), -0.8), _SIDE, height, fc=CHANGE, ec="none")
            ax.add_patch(bar)
        word = "adapters, trained" if kind == "C6" else "cost of a layer"
        _note(ax, right + 0.6, -0.5, word, CHANGE, ha="left")
    _outputs(ax, kind, right)


def _outputs(ax: Axes, kind: str, right: float) -> None:
    """What the model says, as far as the notebook tells it apart."""
    told = {
        "C4": [("one word", 1), ("a text", 5)],
        "C5": [("the chain", 5), ("the answer", 1)],
        "C6": [("a caption", 5), ("a chart's value", 1)],
        "C7": [("bare answer", 1), ("long chain, answer", 5)],
    }.get(kind, [("an answer", 1)])
    looked_at = len(told) > 1
    for row, (name, n) in enumerate(told):
        y = 2.6 if not looked_at else 6.4 - 4.6 * row
        _arrow(ax, (right + 0.5, 2.6), (right + 2.3, y + 0.5 * looked_at))
        for i in range(n):
            place = (right + 2.7 + 1.2 * i, y if looked_at else y - _SIDE / 2)
            edge = CHANGE if looked_at else COLOURS["text"]
            ax.add_patch(Rectangle(place, 0.95, 0.95, fc="none", ec=edge, lw=1.4))
        colour = CHANGE if looked_at else _MUTED
        _note(ax, right + 2.7, y - (0.8 if looked_at else 1.5), name, colour, ha="left")
