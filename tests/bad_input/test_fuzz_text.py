"""Any text a model may say is parsed and scored: no crash, no hang, nothing out of range."""

import re
from dataclasses import replace
from datetime import timedelta

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import tiny
from visdepth_utils.measure import chains, scores
from visdepth_utils.measure.similarity import similarity

PIECES = (
    *("answer is", "the answer:", "Answer", "(A)", "B.", "Z", "(", ")", "1,234", "-.5", "50%", "$"),
    *("9" * 400, "٣,٤٥٦", "½", "²", ".", ";", "!?", "\n", "\t", " ", "'", "a's", "<script>", "{}"),
    *(
        "<think>",
        "</think>",
        "\\boxed{",
        "**",
        "\u2019",
        "\u2212",
        "e\u0301",
        "option ",
        "is A or ",
    ),
    *("the picture shows ", "large red circle, ", "\x00", "\u2028", "İ", "ß", "🟥", "\ufffd"),
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=9), max_size=12).map("".join)
QUICK = settings(max_examples=120, deadline=timedelta(seconds=5), derandomize=True)
N = 100_000
LONG = {
    "spaces": " " * N,
    "answers": "answer is " * (N // 10),
    "an answer and spaces": "answer" + " " * N,
    "brackets": "(" * N,
    "digits": "1" * 4000,
    "thousands": "1" + ",234" * 1000,
    "commas": "1," * (N // 2),
    "points": "1." * (N // 2),
    "quotes": "a'" * (N // 2),
    "options": "A. " * (N // 3),
    "line feeds": "\n" * N,
    "minus": "-" * N,
    "an intro": " " * N + "the picture shows" + " " * N,
    "one word": "a" * N,
}


@QUICK
@given(TEXTS, TEXTS)
@example("9" * 400, "1")  # infinity
@example("answer is answer is", "")
def test_answers_are_parsed_and_scored(said: str, wanted: str) -> None:
    letter = scores.choice_letter(said)
    assert letter is None or re.fullmatch("[A-Z]", letter)
    number = scores.number(said)
    assert number is None or number.is_finite()
    for rule in scores.RULES:
        asked = replace(tiny.sample(0), answer=wanted, reference=wanted, rule=rule)
        assert 0 <= scores.score(asked, said) <= 1
        several = replace(asked, references=(wanted, said))
        assert 0 <= scores.score(several, said) <= 1
    assert scores.word_match(said, said) == scores.caption_f1(said, said) == 1
    assert scores.relaxed_match(said, said) == 1
    assert scores.normalise(scores.normalise(said)) == scores.normalise(said)


@QUICK
@given(TEXTS, TEXTS)
def test_chains_are_parted_and_compared(one: str, two: str) -> None:
    chain, answer, ends = chains.split_answer(one)
    assert one.lstrip().startswith(chain) and answer == scores.normalise(answer)
    open_block = scores.answer_span(one)[0] == len(one)
    assert ends or open_block or (chain, answer) == ("", scores.normalise(one))
    assert not open_block or answer == ""
    assert "".join(chains.words(one)) == re.sub(r"\s", "", one.lower())
    assert all(step == scores.normalise(step) != "" for step in chains.steps(one))
    assert chains.step_agreement(one, one) == 1
    assert 0 <= chains.step_agreement(one, two) == chains.step_agreement(two, one) <= 1


@settings(QUICK, max_examples=40)
@given(st.lists(TEXTS, min_size=6, max_size=6))
def test_a_table_of_any_outputs_is_compared(outputs: list[str]) -> None:
    same = {"task": "reason", "kind": "", "style": "long", "mode": "remove", "control": ""}
    rows = [
        {"sample": f"s{i // 2}", "image": f"i{i // 2}", "depth": i % 2, "output": text, **same}
        for i, text in enumerate(outputs)
    ]
    table = chains.compare(pd.DataFrame(rows))
    assert len(table) == 6
    for name in ("edit", "steps", "flip"):
        both = table[[name, f"{name}_chance"]]
        assert ((both >= 0) & (both <= 1)).all(axis=None)
        assert (table.loc[table["depth"] == 1, name] == 0).all()


@settings(QUICK, max_examples=40)
@given(TEXTS, TEXTS)
def test_texts_are_compared_by_every_measure(said: str, wanted: str) -> None:
    for measure in ("bleu", "rouge", "chrf"):
        (found,) = similarity([said], [[wanted]], measure)
        assert 0 <= found <= 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", LONG)
def test_a_very_long_text_takes_no_longer_than_it_is(name: str) -> None:
    """A pattern that goes back and forth would take hours for these."""
    text = LONG[name]
    for rule in ("letter", "words", "relaxed", "objects"):
        asked = replace(tiny.sample(0), answer=text, reference=text, rule=rule)
        assert 0 <= scores.score(asked, text) <= 1
    chains.split_answer(text)
    assert chains.step_agreement(text, text) == 1
    assert chains._edits([text], [text])[0, 0] == 0
