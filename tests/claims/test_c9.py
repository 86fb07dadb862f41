"""The rule of C9 on verdicts whose agreement, and its probability by chance, are known."""

import itertools
import random

import numpy as np
import pandas as pd
import pytest

from visdepth_utils.claims.c9 import chance, replications
from visdepth_utils.claims.registry import verdict

YES, NO, SOME, OPEN = "supported", "not supported", "weaker", "inconclusive"
MIXED = [YES, YES, YES, YES, NO, NO, SOME, SOME]


def table(**verdicts):
    """Model -> verdicts of C1, C2, ... as a table; None where the model was not asked."""
    rows = [
        {"claim": f"C{i}", "model": model.replace("_", "-"), "verdict": said}
        for model, all_said in verdicts.items()
        for i, said in enumerate(all_said, 1)
        if said
    ]
    return pd.DataFrame(rows)


def test_votes_are_counted():
    counts = replications(table(a=["x", "y"], b=["x", "z"], c=["x"])).set_index("claim")
    assert counts.loc["C1"].tolist() == [3, "x", 3, True]
    assert counts.loc["C2"].tolist() == [2, "y", 1, False]


@pytest.mark.parametrize(
    ("models", "p"),
    [
        ({"a": [YES] * 8, "b": [YES] * 8}, 1.0),  # one word only: nothing can differ
        ({"a": [YES, YES, NO], "b": [YES, YES, NO]}, 1 / 3),  # the odd one meets the odd one
        ({"a": [YES, NO, SOME], "b": [YES, NO, SOME]}, 1 / 6),
        ({m: [YES, YES, NO, SOME] for m in "abc"}, 1 / 144),
        ({"a": [YES] * 3 + [NO] * 3, "b": [YES] * 3 + [NO] * 3}, 1 / 20),
        ({"a": [YES, NO], "b": [NO, YES]}, 1.0),  # none agree: always as many
    ],
)
def test_the_probability_by_hand(models, p):
    rows = table(**models)
    assert chance(rows, int(replications(rows)["agree"].sum())) == pytest.approx(p)


def test_the_probability_is_that_of_all_deals():
    rng = random.Random(0)
    for _ in range(6):
        said = {m: [rng.choice([YES, NO, SOME, None]) for _ in range(4)] for m in "abc"}
        rows = table(**said)
        own = {m: part for m, part in rows.groupby("model")}
        agreed = []
        for deal in itertools.product(
            *[itertools.permutations(p["verdict"]) for p in own.values()]
        ):
            words = {claim: set() for claim in rows["claim"]}
            for part, dealt in zip(own.values(), deal, strict=True):
                for claim, word in zip(part["claim"], dealt, strict=True):
                    words[claim].add(word)
            agreed.append(sum(len(w) == 1 for w in words.values()))
        for least in range(5):
            assert chance(rows, least) == pytest.approx(np.mean(np.array(agreed) >= least))


@pytest.mark.parametrize(
    ("a", "b", "said", "effect"),
    [
        (MIXED, MIXED, "supported", 1.0),
        (MIXED, [NO] * 4 + [YES] * 4, "not supported", 0.0),
        (MIXED, MIXED[:4] + [SOME, SOME, NO, NO], "inconclusive", 0.5),
        ([YES] * 8, [YES] * 8, "inconclusive", 1.0),  # p = 1: they cannot but agree
        ([YES, NO, SOME], [YES, NO, SOME], "inconclusive", 1.0),  # p = 1/6
        ([YES] * 8, [OPEN] * 8, "not testable", None),  # undecided is no vote
    ],
)
def test_known_truths(a, b, said, effect):
    v = verdict("C9", table(a=a, b=b, a_random_init=[SOME] * 4 + [YES] * 4))
    assert v.verdict == said, v.reason
    if effect is not None:
        assert v.effect == effect and v.ci[0] <= effect <= v.ci[1]


def test_how_few_claims_can_be_enough():
    """What the entry says: five claims with two models, four with three."""
    few = [YES, YES, NO, NO, SOME]
    none = {"x_random_init": [SOME, SOME, SOME, SOME, NO]}
    assert verdict("C9", table(a=few, b=few, **none)).verdict == "supported"
    assert verdict("C9", table(a=few[1:], b=few[1:], **none)).verdict == "inconclusive"
    three = dict.fromkeys("abc", few[1:])
    assert verdict("C9", table(**three, x_random_init=[SOME] * 3)).verdict == "supported"
    halves = [YES] * 3 + [NO] * 3
    control = {"x_random_init": [SOME] * 6}
    assert verdict("C9", table(a=halves, b=halves, **control)).verdict == "supported"
    five = halves[:5]
    assert verdict("C9", table(a=five, b=five, **control)).verdict == "inconclusive"
    assert verdict("C9", table(**dict.fromkeys("abc", five), **control)).verdict == "supported"


@pytest.mark.parametrize(
    ("untrained", "said"),
    [
        ([YES] * 3 + [YES] * 5, "weaker"),
        ([YES] * 3 + [SOME] * 3 + [YES] * 2, "supported"),
        ([YES] * 2 + [OPEN] * 6, "weaker"),  # of those it was asked and that were decided
        ([OPEN] * 8, "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_agreement_that_untrained_models_share_is_less(untrained, said):
    v = verdict("C9", table(a=MIXED, b=MIXED, a_random_init=untrained))
    assert (v.verdict, v.effect) == (said, 1.0)
    disagreed = verdict("C9", table(a=[YES] * 8, b=[NO] * 8, a_random_init=untrained))
    assert disagreed.verdict == "not supported"  # no control can raise it


def test_the_interval_is_exact_and_untrained_models_only_a_control():
    v = verdict("C9", table(a=MIXED, b=MIXED))
    assert v.ci == pytest.approx((0.025 ** (1 / 8), 1.0))
    both = table(a=MIXED, b=MIXED, a_random_init=[NO] * 6 + [SOME] * 2)
    w = verdict("C9", both)
    assert (w.verdict, w.effect, w.control_effect) == ("weaker", 1.0, 0.5)
    alone = verdict("C9", table(a=MIXED, a_random_init=MIXED))
    assert alone.verdict == "not testable"
    assert "C9" not in set(verdict("C9", table(a=[*MIXED, YES], b=[*MIXED, YES])).details["claim"])


def test_verdicts_by_chance_and_shared_ones():
    """Both errors: agreement by chance is rarely supported, shared verdicts rarely refuted."""
    rng = np.random.default_rng(0)
    words, mix = [YES, NO, SOME], [0.3, 0.5, 0.2]
    by_chance, shared = [], []
    for _ in range(60):
        at_random = {m: rng.choice(words, 8, p=mix).tolist() for m in "abc"}
        rows = table(**at_random, x_random_init=[SOME] * 3)
        by_chance.append(verdict("C9", rows, p_value=False).verdict)
        truth = rng.choice(words, 8, p=mix)
        wrong = {m: np.where(rng.random(8) < 0.1, rng.choice(words, 8), truth) for m in "abc"}
        shared.append(verdict("C9", table(**wrong), p_value=False).verdict)
    assert by_chance.count("supported") + by_chance.count("weaker") <= 6
    assert shared.count("not supported") <= 6  # at 5%, more come 3 times in 100
