"""The rule of C8 on simulated answers and times whose truth is known."""

import json

import numpy as np
import pandas as pd
import pytest

from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict

LAYERS = 8
LINEAR = [0.1 + 0.9 * d / LAYERS for d in range(LAYERS + 1)]


def simulate(keeps_from, *, n=200, blind=0.2, other=0.2, loss=0.0, seed=0, full=1.0, mode="remove"):
    """Right without the picture with probability ``blind``; with it from a depth on, save a loss.

    ``keeps_from`` holds a depth per task; shallower cuts answer as without the picture.
    """
    rng = np.random.default_rng(seed)
    rows, conditions = [], []
    for task, first in keeps_from.items():
        for i in range(n):
            names = {"sample": f"{task}{i}", "image": f"i{i}", "task": task}
            guess, knows, lost = rng.random() < blind, rng.random() < full, rng.random() < loss
            for d in range(LAYERS + 1):
                sees = knows and d >= first and not (lost and d < LAYERS)
                correct = float(sees or guess)
                rows.append(names | {"mode": mode, "depth": d, "correct": correct})
            for name, score in (("blind", guess), ("other", rng.random() < other)):
                conditions.append(names | {"condition": name, "score": float(score)})
    return pd.DataFrame(rows), pd.DataFrame(conditions)


def clock(shares=LINEAR, *, repeats=9, again=1.0, noise=0.02, seed=0, image_tokens=576):
    """Times of a decoder whose prefill takes these shares; the cache shrinks as the depth does."""
    rng, rows = np.random.default_rng(seed), []
    for r in range(repeats):
        for d, share in [*enumerate(shares), (LAYERS, None)]:
            seconds = (again if share is None else share) * (1 + noise * rng.standard_normal())
            row = {"repetition": r, "depth": d, "again": share is None, "prefill_s": seconds}
            rows.append(row | {"decode_s": 1.0, "kv_bytes": 10 + 90 * d})
    return pd.DataFrame(rows).assign(decoder="own", image_tokens=image_tokens, other_tokens=75)


def decide(keeps_from, times=None, **options):
    table, conditions = simulate(keeps_from, **options)
    given = {"conditions": conditions, "times": clock() if times is None else times}
    return verdict("C8", table, control=given, model="simulated")


EARLY, LATE = {"mcq": 3, "vqa": 4}, {"mcq": 3, "vqa": 7}


@pytest.mark.parametrize("seed", range(5))
def test_known_truths(seed):
    pays = decide(EARLY, clock(seed=seed), seed=seed)
    assert pays.verdict == "supported", pays.reason
    assert "cut at depth 4 of 8" in pays.reason
    assert pays.effect == pytest.approx(1 - LINEAR[4], abs=0.04)
    assert pays.ci[0] <= pays.effect <= pays.ci[1]
    assert abs(pays.control_effect) < 0.04
    late = decide(LATE, clock(seed=seed), seed=seed)
    assert late.verdict == "not supported" and "of 8) loses 3 points" in late.reason
    memory = decide(EARLY, clock([1 - 0.02 * (8 - d) for d in range(9)], seed=seed), seed=seed)
    assert memory.verdict == "not supported" and "not even 0" in memory.reason
    slow = clock([0.3, 0.4, 0.6, 0.7, 0.9, 0.95, 0.95, 0.95, 1.0], seed=seed)
    weaker = decide(EARLY, slow, seed=seed)
    assert weaker.verdict == "weaker" and "the cache shrinks" in weaker.reason


def test_a_loss_at_the_margin_is_rarely_called_none():
    """Every cut loses the 3 points that count: "supported" must come at most about 1 time in 20."""
    trials = [decide(EARLY, loss=0.03, seed=s) for s in range(30)]
    said = [v.verdict for v in trials]
    assert said.count("supported") <= 4  # 30 trials at 5%: more come 1 time in 60
    assert set(said) <= {"supported", "inconclusive", "not supported"}


def test_a_small_loss_is_still_supported():
    trials = [decide(EARLY, loss=0.002, seed=s).verdict for s in range(12)]
    assert trials.count("supported") >= 11


def test_a_picture_that_does_not_matter_is_not_testable():
    same = decide(EARLY, other=0.9)
    assert same.verdict == "not testable" and "another picture brings" in same.reason
    blind = decide(EARLY, blind=0.97)
    assert blind.verdict == "not testable" and "the model cannot do it" in blind.reason
    one = decide({"mcq": 3, "vqa": 99})  # never sees, not even whole: left out
    assert one.verdict == "supported" and "cut at depth 3 of 8" in one.reason
    assert "skipped" in one.details.set_index("measure").loc["vqa: gain by the picture", "label"]
    little = decide(EARLY, full=0.12, blind=0.0, other=0.0)
    assert little.verdict == "not testable" and "worth 10 points" in little.reason


def test_a_bad_clock_is_not_believed():
    noisy = decide(EARLY, clock(again=0.8))
    assert noisy.verdict == "inconclusive" and "er than itself" in noisy.reason
    assert noisy.controls.iloc[-1]["shows it"] == "yes"
    few = decide(EARLY, clock(repeats=8))
    assert few.verdict == "inconclusive" and "8 repetitions" in few.reason
    other = decide(EARLY, clock(image_tokens=64))
    assert other.verdict == "inconclusive" and "576 image tokens" in other.reason
    unsure = decide(EARLY, clock([min(1, s + 0.2) for s in LINEAR], noise=0.3, seed=3))
    assert unsure.verdict == "inconclusive" and "the clock does not tell" in unsure.reason


def test_what_cannot_be_told_is_said():
    table, conditions = simulate(EARLY)
    given = {"conditions": conditions, "times": clock()}
    assert "20 images" in decide(EARLY, n=20).reason
    few = decide(EARLY, n=60)
    assert few.verdict == "inconclusive" and "takes 99" in few.reason
    assert decide(LATE, n=60).verdict == "not supported"  # refuting takes 30
    bare = verdict("C8", table, control={"times": clock()})
    assert bare.verdict == "inconclusive" and "not tried with another picture" in bare.reason
    untimed = verdict("C8", table, control={"conditions": conditions})
    assert untimed.verdict == "inconclusive" and "no times of all depths" in untimed.reason
    alone = verdict("C8", table[table["task"] == "mcq"], control=given)
    assert alone.verdict == "not testable" and "no task 'vqa'" in alone.reason
    shallow = verdict("C8", table[table["depth"] <= 5], control=given)
    assert shallow.verdict == "not testable" and "layers" in shallow.reason
    late_only = verdict("C8", table[table["depth"] > 0], control=given)
    assert late_only.verdict == "not testable" and "depth 0" in late_only.reason
    holes = table.assign(correct=table["correct"].where(table["image"] > "i5"))
    assert "have no value" in verdict("C8", holes, control=given).reason
    with pytest.raises(ValueError, match=r"table lacks column\(s\) mode"):
        verdict("C8", table.drop(columns="mode"), control=given)


def test_variants_and_the_record():
    table, conditions = simulate({"mcq": 3, "vqa": 7}, loss=0.0)
    many = pd.concat([clock(), clock(image_tokens=1024, seed=1)])
    given = {"conditions": conditions, "times": many}
    found = sensitivity("C8", table, control=given).set_index("variant")["verdict"]
    assert found["as registered"] == found["words only"] == "not supported"
    assert found["letters only"] == "supported"
    assert found["1024 image tokens"] == "not supported"
    assert set(found.index) > {"tolerance x 0.5", "tolerance x 2"}
    v, entry = verdict("C8", table, control=given), claim_entry("C8")
    record = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert record["thresholds"]["margin_loss"] == entry["margins"]["loss"]["value"]
    assert record["thresholds"]["image_tokens"] == 576
    assert {"recommended depth", "prefill: ratio there"} <= set(v.details["measure"])
    shuffled = {k: t.sample(frac=1, random_state=1) for k, t in given.items()}
    again = verdict("C8", table.sample(frac=1, random_state=2), control=shuffled)
    assert again.verdict == v.verdict and again.effect == pytest.approx(v.effect)
    assert entry["origin"] == "ours" and "no sentence of the paper" in entry["where"]
