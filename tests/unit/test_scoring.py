"""Scorers: the traps that decided published results elsewhere, and what follows from the rules."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdepth_utils import scoring
from visdepth_utils.sources.formats import FORMATS
from visdepth_utils.tasks import Sample


def sample(task: str, answer: str, reference: str = "") -> Sample:
    return Sample("s", "i", (), "?", reference or answer, answer, task)


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B: the red circle", "B"),
        ("The answer is (B)", "B"),
        ("The correct answer is B.", "B"),
        ("answer: C", "C"),
        ("I choose option (D) here", "D"),
        ("The correct answer is (B)", "B"),  # a known harness reads T here
        ("The correct answer is (B) because (A) is red.", "B"),
        ("(A) red (B) blue", None),  # repeats the options
        ("option (B), yes, (B)", "B"),
        ("The answer is A. No, the answer is B.", None),
        ("Based on the picture", None),
        ("A red circle", None),
        ("The answer is Blue", None),
        ("The answer is B's", None),
        ("", None),
        ("b", None),
    ],
)
def test_choice_letter(output, letter):
    assert scoring.choice_letter(output) == letter


@pytest.mark.parametrize(
    ("output", "target", "score"),
    [
        ("47", "47", 1),
        ("47\n", "47", 1),
        ("the value is 47.", "47", 1),
        ("45", "47", 1),  # 4.3% off
        ("44", "47", 0),  # 6.4% off
        ("50%", "50", 1),
        ("50", "50%", 1),
        ("1,234", "1234", 1),
        ("1,234.5", "1,234.5", 1),
        ("0", "0", 1),
        ("0.0", "0", 1),
        ("1", "0", 0),
        ("-5", "5", 0),
        (".5", "0.5", 1),
        ("", "47", 0),
        ("no number", "47", 0),
        ("Yes", "yes", 1),  # a target without number is compared as words
        ("$1,300\n", "$1,234", 0),
        ("$1,290\n", "$1,234", 1),
        ("50", "50%\n", 1),
        ("March 2019", "March 2019", 1),  # a target that is not wholly a number: as words
        ("January 2019", "March 2019", 0),
        ("29", "18-29", 0),
        ("18-29", "18-29", 1),
    ],
)
def test_relaxed_match(output, target, score):
    assert scoring.relaxed_match(output, target) == score


@given(st.floats(1, 1e6), st.floats(-0.2, 0.2))
def test_relaxed_match_is_five_per_cent_of_the_target(target, off):
    if abs(abs(off) - 0.05) > 1e-3:
        said = f"{target * (1 + off):.9f}"
        assert scoring.relaxed_match(said, f"{target:.9f}") == (abs(off) < 0.05)


@pytest.mark.parametrize(
    ("output", "answer", "score"),
    [
        ("so the answer is 2.", "2", 1),
        ("red star. So the Answer is yes", "yes", 1),
        ("2", "2", 1),
        ("the answer is 3. no, the answer is 2.", "2", 1),  # the last one counts
        ("the answer is 2. no, the answer is 3.", "2", 0),
        ("there are 2 of them", "2", 0),
        ("", "2", 0),
    ],
)
def test_reason(output, answer, score):
    assert scoring.score(sample("reason", answer), output) == score


ONE = "the picture shows at the top left a large red circle, at the middle right a small blue star."


def test_caption_f1_known_values():
    caption = lambda out: scoring.score(sample("caption", ONE, ONE), out)  # noqa: E731
    assert caption(ONE) == 1
    assert caption(ONE.replace(",", " ,").replace(".", " .")) == 1  # spacing of the tokenizer
    assert caption("the picture shows at the top left a large red circle.") == pytest.approx(2 / 3)
    assert caption(ONE.replace("large red", "small red")) == pytest.approx(1 / 2)  # size counts
    assert caption(ONE.replace("top left", "top right")) == pytest.approx(1 / 2)  # place counts
    assert caption("") == 0
    assert caption(ONE.replace(".", ", at the top left a large red circle.")) == pytest.approx(
        4 / 5
    )


@given(st.text(max_size=80), st.sampled_from(["mcq", "vqa", "chart", "caption", "reason"]))
def test_any_output_gets_a_score(output, task):
    answer = {"mcq": "B", "vqa": "red", "chart": "47", "reason": "2"}.get(task, ONE)
    assert 0 <= scoring.score(sample(task, answer), output) <= 1
    assert scoring.score(sample(task, answer), answer) == 1


def test_unknown_task_is_named():
    with pytest.raises(ValueError, match="no scorer for task 'poem'"):
        scoring.score(sample("poem", "x"), "x")


def test_a_rule_of_the_sample_goes_before_that_of_its_task():
    open_question = replace(sample("vqa", "50%"), rule="relaxed")
    assert scoring.score(open_question, "51") == 1
    assert scoring.score(sample("vqa", "50%"), "51") == 0
    with pytest.raises(ValueError, match="no scoring rule 'taste'"):
        scoring.score(replace(open_question, rule="taste"), "51")


def test_every_rule_of_a_format_is_there():
    named = {rule for form in FORMATS.values() for rule in form.rules.values()}
    assert named <= set(scoring.RULES)


def test_several_references_and_the_best_counts():
    captions = ("a dog runs on grass", "the dog is running", "a brown dog")
    dog = Sample("s", "i", (), "?", captions[0], captions[0], "caption", references=captions)
    dog = replace(dog, rule="captions")
    assert [scoring.score(dog, text) for text in captions] == [1, 1, 1]
    assert scoring.score(dog, "a brown cat") == pytest.approx(2 / 3)  # 2 of 3 words, both ways
    assert scoring.score(dog, "xyz") == 0
    labels = replace(sample("vqa", "red"), references=("red", "crimson"), rule="words")
    assert [scoring.score(labels, text) for text in ("Crimson.", "red", "blue")] == [1, 1, 0]
