"""Distances of chains: known answers, and chance as a brute-force mean over other pictures."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from visdepth_utils.measure.chains import compare, split_answer, step_agreement, steps, words


@pytest.mark.parametrize(
    ("text", "chain", "answer", "ends"),
    [
        ("a b . so the answer is 2 .", "a b . so the", "2", True),
        ("The answer is no. Wait, the answer is YES.", "The answer is no. Wait, the", "yes", True),
        ("Look.\nAnswer: (B)", "Look.", "b", True),
        ("the answer is: 1,234", "the", "1,234", True),
        ("yes .", "", "yes", False),
        ("", "", "", False),
        ("his answers vary", "", "his answers vary", False),
        ("<think>a b .</think> so the answer is 2", "<think>a b .</think> so the", "2", True),
        ("<think>the answer is 2, or", "<think>the answer is 2, or", "", False),
    ],
)
def test_the_last_answer_counts(text, chain, answer, ends):
    assert split_answer(text) == (chain, answer, ends)


def test_words_and_steps():
    assert "|".join(words("Top-left: 1,234 red; 0.5 .")) == "top|-|left|:|1,234|red|;|0.5|."
    assert steps("red cross at 0.5 . blue one ! \n\n so") == ["red cross at 0.5", "blue one", "so"]
    assert step_agreement("a . b . b .", "b . b . c .") == pytest.approx(2 / 3)
    assert (step_agreement("", ""), step_agreement("a .", "")) == (1.0, 0.0)


def rows(outputs, depth, images=None, kinds=None, control=""):
    n = len(outputs)
    return pd.DataFrame(
        {
            "sample": [f"s{i}" for i in range(n)],
            "image": images or [f"i{i}" for i in range(n)],
            "task": "reason",
            "kind": kinds or "count",
            "style": "long",
            "mode": "remove",
            "depth": depth,
            "control": control,
            "output": outputs,
        }
    )


texts = st.lists(
    st.tuples(st.text(alphabet="abc .", max_size=8), st.sampled_from(["1", "2"])).map(
        lambda parts: f"{parts[0]} so the answer is {parts[1]} ."
    ),
    min_size=4,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(full=texts, cut=texts, images=st.lists(st.sampled_from("xyz"), min_size=4, max_size=4))
def test_chance_is_the_mean_over_other_pictures(full, cut, images):
    table = pd.concat([rows(full, 4, images), rows(cut, 0, images)])
    found = compare(table)
    cut_rows = found[found["depth"] == 0].reset_index(drop=True)
    parted = [[split_answer(t) for t in side] for side in (full, cut)]
    for i in range(4):
        there = [j for j in range(4) if images[j] != images[i]]
        d = [
            Levenshtein.normalized_distance(words(parted[0][i][0]), words(parted[1][j][0]))
            for j in range(4)
        ]
        flips = [float(parted[0][i][1] != parted[1][j][1]) for j in range(4)]
        assert cut_rows.loc[i, "edit"] == pytest.approx(d[i])
        assert cut_rows.loc[i, "flip"] == flips[i]
        if not there:
            assert np.isnan(cut_rows.loc[i, "edit_chance"])
            continue
        assert cut_rows.loc[i, "edit_chance"] == pytest.approx(np.mean([d[j] for j in there]))
        assert cut_rows.loc[i, "flip_chance"] == pytest.approx(np.mean([flips[j] for j in there]))


def test_equal_outputs_are_at_zero_and_formats_are_not_mixed():
    said = [f"item {i} . so the answer is {i} ." for i in range(4)]
    kinds = ["count", "count", "spatial", "spatial"]
    found = compare(pd.concat([rows(said, 2, kinds=kinds), rows(said, 0, kinds=kinds)]))
    assert found[["edit", "steps", "flip"]].to_numpy().max() == 0
    # "item 0 so the" and "item 1 so the" differ in one word of five, and in one step of two.
    assert found["edit_chance"].tolist() == pytest.approx([1 / 5] * 8)
    assert found["steps_chance"].tolist() == pytest.approx([1 / 2] * 8)
    assert found["flip_chance"].tolist() == [1.0] * 8
    assert found["same"].all() and found["ends"].all()


def test_what_is_missing_is_named():
    table = rows(["a"], 0)
    with pytest.raises(ValueError, match="lacks column"):
        compare(table.drop(columns="kind"))
    with pytest.raises(ValueError, match="no row of the full model"):
        compare(pd.concat([table, rows(["a", "b"], 3).tail(1)]))
