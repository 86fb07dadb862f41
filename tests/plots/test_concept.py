"""The diagram at the top of each notebook: one style, and the change drawn in."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from visdepth_utils.plots.concept import CHANGE, KINDS, concept
from visdepth_utils.plots.style import COLOURS


def squares(fig, colour):
    """Tokens that are filled with a colour, wherever they stand."""
    found = [p for p in fig.axes[0].patches if isinstance(p, Rectangle) and p.get_fill()]
    return [p for p in found if to_hex(p.get_facecolor()) == colour.lower() and p.get_width() > 1]


def drawn_in(fig):
    """Texts in the colour of what is changed."""
    return {t.get_text() for t in fig.axes[0].texts if t.get_color() == CHANGE}


@pytest.mark.parametrize("kind", KINDS)
def test_every_diagram_is_a_white_card_with_its_question_and_no_text_beyond_its_edge(kind):
    fig = concept(kind)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edges == 255).all()
    assert KINDS[kind] in {t.get_text() for t in fig.axes[0].texts}
    page = fig.get_window_extent()
    for text in fig.axes[0].texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text.get_text()
    assert bool(drawn_in(fig)) == (kind != "start")


def test_image_tokens_are_gone_from_layer_d_on_and_text_tokens_are_not():
    whole, cut, frozen = concept("start"), concept("C4"), concept("C0")
    image, text = COLOURS["image"], COLOURS["text"]
    assert len(squares(whole, image)) == 4 * 10  # the tokens themselves, and nine layers
    assert len(squares(cut, image)) == 4 * 4
    assert len(squares(frozen, image)) == 4 * 4 + 2 * 6
    assert len(squares(whole, text)) == len(squares(cut, text)) == 2 * 10
    assert drawn_in(cut) == {"layer d", "removed", "one word", "a text"}
    assert {"layer a", "layer b"} <= drawn_in(concept("C3"))


def test_an_unknown_diagram_is_refused():
    with pytest.raises(ValueError, match="no diagram 'C99': must be one of start, C0"):
        concept("C99")
