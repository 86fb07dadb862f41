"""The rule of C5 on simulated chains whose truth is known: only a change of the chain gives C5."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.chained import DEPTHS
from calibration.chained import chains_table as simulate
from visdepth_utils.claims.bootstrap import Interval, as_much
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict
from visdepth_utils.measure.chains import compare


def decide(*args, **options):
    return verdict("C5", compare(simulate(*args, **options)), model="simulated")


CHAIN_ONLY = {"hazard": 0.1, "answer_hazard": 0.02}


@pytest.mark.parametrize("seed", range(3))
def test_only_a_change_of_the_chain_gives_c5(seed):
    found = {
        "no change": decide(seed=seed),
        "all random": decide(random=True, seed=seed),
        "length only": decide(0.05, seed=seed),
        "chain only": decide(**CHAIN_ONLY, seed=seed),
    }
    verdicts = {name: v.verdict for name, v in found.items()}
    assert verdicts.pop("chain only") == "supported", found["chain only"].reason
    assert verdicts.pop("all random") in ("not supported", "inconclusive")  # 48 pictures only
    assert set(verdicts.values()) == {"not supported"}, verdicts
    assert found["no change"].effect == 0.0
    assert abs(found["all random"].effect) < 0.12


def test_naive_numbers_claim_what_the_rule_does_not():
    """With equal hazards nearly every chain and few answers change; that says nothing."""
    v = decide(0.05)
    naive = v.details.set_index("measure")["estimate"]
    assert naive["naive: chains that change at all"] > 0.4
    assert naive["naive: chains that change at all"] - naive["naive: answers that change"] > 0.08
    assert v.verdict == "not supported"


def test_slips_that_add_up_are_weaker():
    """The answer is read off the whole chain elsewhere, but is as fragile as a chain token."""
    v = decide(hazard=0.05, answer_hazard=0.05)
    assert v.verdict == "weaker"
    assert "slips adding up" in v.reason


def test_a_shift_that_does_the_same_is_weaker():
    table = simulate(**CHAIN_ONLY)
    shifted = table["control"] == "one pixel"
    cut = table[(table["depth"] == 0) & (table["control"] == "")].set_index("sample")["output"]
    table.loc[shifted, "output"] = table.loc[shifted, "sample"].map(cut)
    v = verdict("C5", compare(table), model="simulated")
    assert v.verdict == "weaker"
    assert "one pixel" in v.reason
    assert v.controls["shows it"].tolist() == ["yes"]


@pytest.mark.parametrize(
    ("control", "contrast", "shows"),
    [
        ((0.1, 0.3), (0.2, 0.4), "no"),  # less than the model
        ((-0.3, -0.1), (-0.1, 0.1), "no"),  # none at all
        ((0.0, 0.0), (-0.1, 0.1), "no"),
        ((0.1, 0.3), (-0.1, 0.1), "yes"),
        ((-0.1, 0.1), (-0.2, 0.1), "unclear"),
    ],
)
def test_a_control_shows_what_it_has_itself(control, contrast, shows):
    own, over = (Interval(0.0, lo, hi, lo, hi) for lo, hi in (control, contrast))
    assert as_much(own, over) == shows


def test_what_cannot_be_told_is_said():
    table = simulate(**CHAIN_ONLY)
    few = verdict("C5", compare(table[table["sample"].isin([f"s{i}" for i in range(20)])]))
    assert few.verdict == "inconclusive" and "20 images" in few.reason
    blind = table.copy()
    elsewhere = blind["control"] == "another picture"
    own = table[(table["depth"] == max(DEPTHS)) & (table["control"] == "")]
    blind.loc[elsewhere, "output"] = own["output"].to_numpy()
    v = verdict("C5", compare(blind))
    assert v.verdict == "not testable" and "hardly depend on the picture" in v.reason
    mute = table.assign(output=table["output"].str.replace("answer is", ""))
    assert "names a final answer in 0%" in verdict("C5", compare(mute)).reason
    shallow = verdict("C5", compare(table[table["control"] == ""].query("depth <= 5")))
    assert shallow.verdict == "not testable" and "layers" in shallow.reason
    late = verdict("C5", compare(table.query("depth > 0")))
    assert late.verdict == "not testable" and "depth 0" in late.reason
    wrong = verdict("C5", compare(table.assign(mode="freeze")))
    assert wrong.verdict == "not testable" and "no rows of mode" in wrong.reason
    bare = verdict("C5", compare(table[table["control"] == ""]))
    assert bare.verdict == "inconclusive" and "controls are missing" in bare.reason


def test_the_other_scale_divides_by_the_distance_under_another_picture():
    table = compare(simulate(**CHAIN_ONLY))
    found = sensitivity("C5", table).set_index("variant")["effect"]
    plain = table[table["control"] == ""].groupby("depth")[["edit", "flip"]].mean()
    far = table[table["control"] == "another picture"][["edit", "flip"]].mean()
    curves = plain / far
    by_hand = np.trapezoid(curves["edit"] - curves["flip"], curves.index / max(DEPTHS))
    assert found["over the distance under another picture"] == pytest.approx(by_hand)


def test_runs_that_do_not_repeat_are_inconclusive():
    table = simulate(**CHAIN_ONLY)
    again = table["control"] == "run again"
    table.loc[again, "output"] = table.loc[again, "output"].str.replace("w1", "w2")
    v = verdict("C5", compare(table))
    assert v.verdict == "inconclusive" and "two runs of the same model" in v.reason


def test_missing_columns_are_named():
    table = compare(simulate(**CHAIN_ONLY))
    with pytest.raises(ValueError, match=r"edit_chance: pass what chains\.compare returns"):
        verdict("C5", table.drop(columns="edit_chance"))


def test_order_and_copies_of_rows_do_not_matter():
    table = simulate(**CHAIN_ONLY)
    one = verdict("C5", compare(table))
    two = verdict("C5", compare(table.sample(frac=1, random_state=0)).sort_values("sample"))
    assert one.verdict == two.verdict
    assert one.effect == pytest.approx(two.effect)


def test_variants_and_the_record():
    both = pd.concat([simulate(**CHAIN_ONLY), simulate(**CHAIN_ONLY, mode="renumber")])
    tables = [compare(both[both["mode"] == m]) for m in ("remove", "renumber")]
    found = sensitivity("C5", pd.concat(tables)).set_index("variant")["verdict"]
    assert found["as registered"] == found["positions closed up"] == "supported"
    assert found["image states frozen"] == "not testable"
    assert found["over the distance under another picture"] == "supported"
    assert found["places only"] != "not testable"  # 24 images: too few
    v, entry = decide(**CHAIN_ONLY), claim_entry("C5")
    record = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert record["thresholds"]["margin_difference"] == entry["margins"]["difference"]["value"]
    assert record["n_images"] == 48
    assert len(str(v).splitlines()) <= 10
