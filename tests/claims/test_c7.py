"""The rule of C7 on simulated answers whose retention by style is known."""

import json

import pandas as pd
import pytest

from calibration.styles import OWN, early, even, late
from calibration.styles import styles_tables as simulate
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict


def decide(*args, **options):
    table, controls = simulate(*args, **options)
    return verdict("C7", table, control=controls, model="simulated")


@pytest.mark.parametrize("seed", range(3))
def test_known_truths(seed):
    helps = decide({"direct": late, "long": early}, seed=seed)
    assert helps.verdict == "supported" and helps.effect == pytest.approx(0.5, abs=0.1)
    harms = decide({"direct": early, "long": late}, seed=seed)
    assert harms.verdict == "not supported" and "lose more of the gain" in harms.reason
    alike = decide({"direct": even, "long": even}, seed=seed)
    assert alike.verdict in ("not supported", "inconclusive") and abs(alike.effect) < 0.1


def test_a_higher_score_everywhere_is_no_compensation():
    """Long chains score higher at every depth, but lose the same share: no C7."""
    v = decide({"direct": even, "long": even}, full={"direct": 0.5, "long": 1.0}, n=400)
    assert v.verdict == "not supported" and "longer reasoning" in v.reason
    scores = v.details.set_index("measure")["estimate"]
    assert scores["long: score, mean over depth"] - scores["direct: score, mean over depth"] > 0.15


def test_equal_compute_takes_the_deepest_cut_that_is_no_dearer():
    v = decide({"direct": even, "long": early})
    row = v.details.iloc[-1]
    assert row["measure"] == "equal compute: long at depth 3 minus direct at depth 8, score"
    table, _ = simulate({"direct": even, "long": early})
    at = table.groupby(["style", "depth"])["correct"].mean()
    assert row["estimate"] == pytest.approx(at["long", 3] - at["direct", 8])


def test_what_cannot_be_told_is_said():
    kept = {"direct": late, "long": early}
    assert "20 images" in decide(kept, n=20).reason
    blind = decide(kept, full={"direct": 0.1, "long": 1.0})
    assert blind.verdict == "not testable" and "direct skipped" in blind.reason
    same = decide(kept, other=0.9)
    assert same.verdict == "not testable" and "another picture brings" in same.reason
    table, controls = simulate(kept)
    alone = verdict("C7", table[table["style"] == "long"], control=controls)
    assert alone.verdict == "not testable" and "no style 'direct'" in alone.reason
    bare = verdict("C7", table)
    assert bare.verdict == "inconclusive" and "not tried with another picture" in bare.reason
    late_only = verdict("C7", table[table["depth"] > 0], control=controls)
    assert late_only.verdict == "not testable" and "depth 0" in late_only.reason
    shallow = verdict("C7", table[table["depth"] <= 5], control=controls)
    assert shallow.verdict == "not testable" and "layers" in shallow.reason
    with pytest.raises(ValueError, match=r"table lacks column\(s\) style"):
        verdict("C7", table.drop(columns="style"), control=controls)


def test_variants_and_the_record():
    kept = {"direct": late, "short": even, "long": early}
    table, controls = simulate(kept)
    frozen, _ = simulate(kept, mode="freeze")
    both = pd.concat([table, frozen])
    found = sensitivity("C7", both, control=controls).set_index("variant")["verdict"]
    assert found["as registered"] == found["image states frozen"] == "supported"
    assert found["positions closed up"] == "not testable"
    assert found["long chains against short ones"] == "supported"
    v, entry = verdict("C7", table, control=controls), claim_entry("C7")
    record = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert record["thresholds"]["margin_contrast"] == entry["margins"]["contrast"]["value"]
    assert "short: kept, mean over depth" in set(v.details["measure"])
    shuffled = verdict("C7", table.sample(frac=1, random_state=1), control=controls)
    assert shuffled.verdict == v.verdict and shuffled.effect == pytest.approx(v.effect)


def test_another_picture_that_may_help_leaves_it_open():
    v = decide({"direct": late, "long": early}, other=0.12)
    states = v.controls.set_index("control")["shows it"]
    assert "unclear" in set(states) and "yes" not in set(states)
    assert v.verdict == "inconclusive"
    assert "whether another picture helps" in v.reason and "is unclear" in v.reason


def test_too_few_pictures_refute_nothing():
    """At base's own blind scores 96 pictures cannot tell: that is no "not supported"."""
    exponent = claim_entry("C7")["power_at"]["exponent"]
    kept = {"direct": lambda z: z**exponent, "long": lambda z: z ** (1 / exponent)}
    few = [decide(kept, seed=seed, **OWN) for seed in range(8)]
    assert "not supported" not in {v.verdict for v in few}
    assert sum(v.verdict == "supported" for v in few) <= 2
    assert decide(kept, n=1200, **OWN).verdict == "supported"
    assert claim_entry("C7")["power_at"]["own_blind"] == OWN["blind"]


def test_no_difference_is_a_bound_below_the_margin():
    most = claim_entry("C7")["margins"]["contrast"]["value"]
    v = decide({"direct": even, "long": even}, n=6000)
    assert v.verdict == "not supported" and "makes no difference" in v.reason
    assert v.ci[1] < 2 * most
    few = [decide({"direct": even, "long": even}, seed=seed, **OWN) for seed in range(6)]
    open_ones = [v for v in few if v.verdict == "inconclusive" and v.effect < most]
    assert open_ones and not any(v.ci[1] < most for v in open_ones)
