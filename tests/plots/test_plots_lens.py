"""Figures of the lens: words at their places, right ones told from wrong ones, shares as given."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from tests.strict import no_warnings
from visdepth_utils.data.worlds.truth import Held
from visdepth_utils.plots.lens import WORDS, said_by_depth, still_said

LAST, PICTURE = 4, Image.new("RGB", (8, 8), "grey")
HELD = [Held((0, 0, 0.5, 0.5), ("red", "star"))]


@pytest.fixture(autouse=True)
def no_warnings_and_no_figure_left_open():
    with no_warnings():
        yield
    assert plt.get_fignums() == []  # after an error too


def words():
    """2 x 2 tokens; the first says red up to layer 2, the others name themselves."""
    rows = [
        {"sample": "s", "layer": layer, "token": 2 * r + c, "row": r, "column": c, "lens": lens}
        | {"words": ["red" if layer <= 2 else "blue"] if r == c == 0 else [f"{r}{c}"]}
        for layer in range(LAST + 1)
        for lens in ("text", "logit")
        for r in range(2)
        for c in range(2)
    ]
    return pd.DataFrame(rows)


def shares(early=0.8, deep=0.4, chance=0.1):
    rows = [
        {"image": f"i{i}", "layer": layer, "lens": lens, "labels": labels, "value": value}
        for i in range(8)
        for layer in range(LAST + 1)
        for lens in ("text", "logit")
        for labels, value in (("own", (early if layer < 2 else deep)), ("other pictures", chance))
    ]
    return pd.DataFrame(rows)


def test_words_stand_on_their_patches():
    fig = said_by_depth(words(), PICTURE, shares(), HELD, layers=[0, 3])
    first, deep, curve = fig.axes
    assert first.get_title() == "state going into layer 0"
    at = {t.get_position(): t for t in first.texts}
    assert {place: t.get_text() for place, t in at.items()} == {
        (0.5, 0.5): "red",
        (1.5, 0.5): "01",
        (0.5, 1.5): "10",
        (1.5, 1.5): "11",
    }
    assert at[0.5, 0.5].get_color() == WORDS[True][0]
    assert at[1.5, 0.5].get_color() == WORDS[None][0]
    wrong = next(t for t in deep.texts if t.get_text() == "blue")
    assert wrong.get_color() == WORDS[False][0]
    lines = {line.get_label(): line for line in curve.lines}
    assert lines["nearest text state"].get_ydata() == pytest.approx([0.8] * 2 + [0.4] * 3)
    chance = lines["nearest text state: chance, objects of other pictures"]
    assert chance.get_ydata() == pytest.approx([0.1] * 5)
    assert to_hex(chance.get_color()) == to_hex(lines["nearest text state"].get_color())


def test_without_truth_there_is_no_curve():
    fig = said_by_depth(words(), PICTURE, shares().iloc[:0])
    assert [ax.get_title() for ax in fig.axes] == [f"state going into layer {i}" for i in (0, 3)]
    assert {t.get_color() for ax in fig.axes for t in ax.texts} == {WORDS[None][0]}
    assert "not known" in still_said(shares().iloc[:0])


def test_the_sentence_says_what_the_table_says():
    assert still_said(shares()) == (
        "Deep image states still name what their patches hold, but less often than early ones: "
        "0.30 [0.30, 0.30] of the tokens above chance in layers 2 to 3, 0.70 [0.70, 0.70] in "
        "layers 0 to 1 (8 pictures)."
    )
    assert "more often than early ones" in still_said(shares(0.4, 0.8))
    assert "less often than early ones is not clear" in still_said(shares(0.5, 0.5))
    assert "do not clearly name" in still_said(shares(0.8, 0.05))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="several samples"):
        said_by_depth(pd.concat([words(), words().assign(sample="t")]), PICTURE)
    with pytest.raises(ValueError, match="where the tokens lie in the picture is not known"):
        said_by_depth(words().assign(row=pd.NA), PICTURE)
    with pytest.raises(ValueError, match=r"table lacks column\(s\) words: pass what token_lens"):
        said_by_depth(words().drop(columns="words"), PICTURE)
