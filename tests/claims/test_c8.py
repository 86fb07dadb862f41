"""The rule of C8 on simulated answers, costs and times whose truth is known."""

import json

import pandas as pd
import pytest

from calibration.cuts import LINEAR, clock, costs, cut_tables
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict, verdict_by

EARLY, LATE = {"mcq": 3, "vqa": 4}, {"mcq": 3, "vqa": 7}
SLOW = [0.3, 0.4, 0.6, 0.7, 0.9, 0.95, 0.95, 0.95, 1.0]


def decide(keeps_from, *, by="costs", **options):
    given = {name: options.pop(name) for name in ("times", "costs") if name in options}
    table, controls = cut_tables(keeps_from, **options)
    spec = claim_entry("C8") | {"decides": by}
    return verdict_by("C8", spec, table, controls | given, "simulated")


def rows_of(v):
    return v.details.set_index("measure")


@pytest.mark.parametrize("seed", range(3))
def test_known_truths(seed):
    pays = decide(EARLY, seed=seed)
    assert pays.verdict == "supported", pays.reason
    assert "cut at depth 4 of 8" in pays.reason
    assert "45% of the prefill's FLOPs and 45% of the cache go; the clock agrees" in pays.reason
    assert pays.effect == pytest.approx(1 - LINEAR[4])  # counted: no noise enters
    assert pays.ci[0] <= pays.effect <= pays.ci[1]
    late = decide(LATE, seed=seed)
    assert late.verdict == "not supported"
    assert "(up to 5 of 8) loses 3 points" in late.reason
    none = decide(EARLY, costs=costs([1 - 0.02 * (8 - d) for d in range(9)]), seed=seed)
    assert none.verdict == "not supported" and "no depth saves 25%" in none.reason
    cache = decide(EARLY, costs=costs(SLOW), seed=seed)
    assert cache.verdict == "weaker"
    assert "0.90 of the prefill's FLOPs and 0.55 of the cache are left" in cache.reason
    flops = decide(EARLY, costs=costs(cache=SLOW), seed=seed)
    assert flops.verdict == "weaker"


def test_the_margin_counts_for_flops_and_for_bytes():
    """At exactly 0.75 a quarter is saved; a thousandth more and it is not."""
    edge = [0.75 if d == 4 else share for d, share in enumerate(LINEAR)]
    above = [0.751 if d == 4 else share for d, share in enumerate(LINEAR)]
    assert decide(EARLY, costs=costs(edge, edge)).verdict == "supported"
    assert decide(EARLY, costs=costs(above, edge)).verdict == "weaker"
    assert decide(EARLY, costs=costs(edge, above)).verdict == "weaker"
    assert decide(EARLY, costs=costs(above, above)).verdict == "inconclusive"


def test_a_noisy_clock_does_not_change_the_verdict():
    """A true 0.70 with times that scatter by 10%: the clock alone says it in few runs."""
    true = [0.70 if d == 4 else share for d, share in enumerate(LINEAR)]
    times = [clock(true, noise=0.1, seed=seed) for seed in range(20)]
    counted = {decide(EARLY, costs=costs(true), times=t).verdict for t in times}
    assert counted == {"supported"}
    timed = [decide(EARLY, by="clock", times=t).verdict for t in times]
    assert timed.count("supported") <= 12


@pytest.mark.parametrize(
    ("times", "words", "old"),
    [
        (clock(), "the clock agrees (", "supported"),
        (clock([s if d != 4 else 0.9 for d, s in enumerate(LINEAR)]), "disagrees (0.8", "weaker"),
        (clock([min(1, s + 0.2) for s in LINEAR], noise=0.3, seed=3), "not tell (", "inconclusive"),
        (clock(again=0.8), "not tell: the whole model is 19% faster", "inconclusive"),
        (clock(repeats=8), "not tell: 8 repetitions, it takes 9", "inconclusive"),
        (clock(image_tokens=64), "the clock was not asked", "not testable"),
    ],
)
def test_the_clock_decides_only_where_it_is_asked(times, words, old):
    v = decide(EARLY, times=times)
    assert v.verdict == "supported"
    assert words in v.reason
    assert decide(EARLY, by="clock", times=times).verdict == old


def test_the_clock_stands_beside():
    v = decide(EARLY, times=clock(again=0.8))
    own = v.controls.set_index("control").loc["the clock: no cut, time saved (range)"]
    assert own["shows it"] == "yes"
    assert "prefill: median time there" not in rows_of(v).index
    good = rows_of(decide(EARLY)).loc["prefill: median time there"]
    assert good["lo"] <= good["estimate"] <= good["hi"]
    assert good["label"] == "the clock agrees"
    assert rows_of(decide(EARLY)).loc["prefill: FLOPs left there", "estimate"] == LINEAR[4]


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
    little = decide(EARLY, full=0.08, blind=0.0, other=0.0)
    assert little.verdict == "not testable" and "worth 10 points" in little.reason


def test_what_cannot_be_told_is_said():
    table, controls = cut_tables(EARLY)
    assert "20 images" in decide(EARLY, n=20).reason
    few = decide(EARLY, n=60)
    assert few.verdict == "inconclusive" and "takes 99" in few.reason
    assert decide(LATE, n=60).verdict == "not supported"  # refuting takes 30
    bare = verdict("C8", table, control={"costs": controls["costs"]})
    assert bare.verdict == "inconclusive" and "not tried with another picture" in bare.reason
    uncounted = {k: v for k, v in controls.items() if k != "costs"}
    for given in (uncounted, controls | {"costs": costs(image_tokens=64)}):
        v = verdict("C8", table, control=given)
        assert v.verdict == "not testable" and "no costs of all depths at 576" in v.reason
    alone = verdict("C8", table[table["task"] == "mcq"], control=controls)
    assert alone.verdict == "not testable" and "no task 'vqa'" in alone.reason
    shallow = verdict("C8", table[table["depth"] <= 5], control=controls)
    assert shallow.verdict == "not testable" and "layers" in shallow.reason
    late_only = verdict("C8", table[table["depth"] > 0], control=controls)
    assert late_only.verdict == "not testable" and "depth 0" in late_only.reason
    holes = table.assign(correct=table["correct"].where(table["image"] > "i5"))
    assert "have no value" in verdict("C8", holes, control=controls).reason
    with pytest.raises(ValueError, match=r"table lacks column\(s\) mode"):
        verdict("C8", table.drop(columns="mode"), control=controls)
    with pytest.raises(ValueError, match=r"costs lacks column\(s\) kv_ratio"):
        verdict("C8", table, control=controls | {"costs": costs().drop(columns="kv_ratio")})


def test_variants_and_the_record():
    table, controls = cut_tables({"mcq": 3, "vqa": 7})
    counts = pd.concat([costs(), costs(image_tokens=1024)])
    given = controls | {"costs": counts}
    found = sensitivity("C8", table, control=given).set_index("variant")["verdict"]
    assert found["as registered"] == found["words only"] == "not supported"
    assert found["letters only"] == "supported"
    assert found["1024 image tokens"] == "not supported"
    assert found["64 image tokens"] == "not testable"
    assert set(found.index) > {"tolerance x 0.5", "tolerance x 2", "the clock decides"}
    v, entry = verdict("C8", table, control=given), claim_entry("C8")
    record = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert record["thresholds"]["margin_loss"] == entry["margins"]["loss"]["value"]
    assert record["thresholds"]["image_tokens"] == 576
    assert record["thresholds"]["decides"] == "costs"
    assert {"recommended depth", "cache: bytes left there"} <= set(v.details["measure"])
    shuffled = {k: t.sample(frac=1, random_state=1) for k, t in given.items()}
    again = verdict("C8", table.sample(frac=1, random_state=2), control=shuffled)
    assert again.verdict == v.verdict and again.effect == pytest.approx(v.effect)
    assert entry["origin"] == "ours" and "no sentence of the paper" in entry["where"]
