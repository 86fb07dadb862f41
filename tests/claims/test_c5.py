"""The rule of C5 on simulated chains whose truth is known: only a change of the chain gives C5."""

import json

import numpy as np
import pandas as pd
import pytest

from calibration.chained import DEPTHS, needs
from calibration.chained import chains_table as simulate
from visdepth_utils.claims.bootstrap import Interval, as_much
from visdepth_utils.claims.c5 import _outcome, _pattern, _scaled
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict, verdict_by
from visdepth_utils.measure.chains import compare

CHAIN_ONLY = {"chain": needs(0.65), "answer": needs(0.4), "question_words": 0.2}
ALIKE = {"chain": needs(0.5), "answer": needs(0.5), "question_words": 0.2}
REVERSED = {"chain": needs(0.3), "answer": needs(0.65), "question_words": 0.2}


def decide(**options):
    return verdict("C5", compare(simulate(**options)), model="simulated", p_value=False)


@pytest.fixture(scope="module")
def planted():
    """The table of an effect, with words of the question."""
    return compare(simulate(**CHAIN_ONLY))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("template", [False, True])
def test_only_a_change_of_the_chain_gives_c5(seed, template):
    options = {"seed": seed, "template": template, "n": 72}
    effect, null = decide(**CHAIN_ONLY, **options), decide(**ALIKE, **options)
    assert effect.verdict == "supported", effect.reason
    assert null.verdict in ("not supported", "inconclusive", "weaker"), null.reason
    assert abs(null.effect) < 0.1 and effect.effect > 0.15
    assert decide(**REVERSED, **options).verdict == "not supported"


def test_naive_numbers_claim_what_the_rule_does_not():
    """With equal hazards nearly every chain and fewer answers change; that says nothing."""
    v = decide(**ALIKE)
    naive = v.details.set_index("measure")["estimate"]
    assert naive["naive: chains that change at all"] > 0.7
    assert naive["naive: chains that change at all"] - naive["naive: answers that change"] > 0.2
    assert v.verdict != "supported"


def test_slips_that_add_up_are_weaker():
    """One early slip changes all later words; a token by itself is hit less than the answer's."""
    v = decide(chain=needs(0.75, 0.3), answer=needs(0.6), cascades=True, n=96)
    assert v.verdict == "weaker"
    assert "slips adding up" in v.reason


def test_a_shift_that_does_the_same_is_weaker():
    table = simulate(**CHAIN_ONLY)
    shifted = table["control"] == "one pixel"
    cut = table[(table["depth"] == 4) & (table["control"] == "")].set_index("sample")["output"]
    table.loc[shifted, "output"] = table.loc[shifted, "sample"].map(cut)
    v = verdict("C5", compare(table), model="simulated")
    assert v.verdict == "weaker"
    assert "one pixel" in v.reason
    assert v.controls["shows it"].tolist() == ["yes"]


def scaled_table(edit, flip, far_edit=0.8, far_flip=0.6, n=40):
    """Distances that are the same for every image, chance 0.8 everywhere."""
    rows, last = [], len(edit) - 1
    conditions = [(d, "", edit[d], flip[d]) for d in range(len(edit))]
    conditions += [(last, name, 0.0, 0.0) for name in ("run again", "one pixel")]
    conditions += [(last, "another picture", far_edit, far_flip)]
    for i in range(n):
        for depth, control, own, answer in conditions:
            row = {"sample": f"s{i}", "image": f"i{i}", "kind": "count", "mode": "remove"}
            row |= {"depth": depth, "control": control, "correct": 1.0, "ends": True}
            row |= {"edit": own, "edit_own": own, "edit_own_chance": 0.8}
            row |= {"flip": answer, "flip_chance": 0.8, "answer_kept": 1.0}
            row |= {"kl_chain": 1.0, "kl_answer": 0.5}
            rows.append(row | {"changed_chain": 0.2, "changed_answer": 0.1})
    return pd.DataFrame(rows)


LINE = 1 - np.arange(9) / 8
CURVE = 1 - (np.arange(9) / 8) ** 2
BENT = np.trapezoid(CURVE - LINE) / 8


def test_each_side_is_measured_by_its_own_distance_without_the_image():
    """Ceilings of 0.8 and 0.5 do not count; with another image 0.8 and 0.6 do."""
    v = verdict("C5", scaled_table(0.8 * CURVE, 0.5 * LINE))
    assert v.verdict == "supported", v.reason
    assert (v.effect, *v.ci) == pytest.approx((BENT,) * 3)
    rows = v.details.set_index("measure")["estimate"]
    far = np.trapezoid(CURVE - LINE * 0.5 / 0.6) / 8
    assert rows["chains minus answers, over another picture"] == pytest.approx(far)
    null = verdict("C5", scaled_table(0.8 * LINE, 0.5 * LINE, far_flip=0.5))
    assert null.verdict == "not supported"
    assert null.effect == pytest.approx(0, abs=1e-12)


def test_where_the_scales_disagree_it_depends_on_the_scale():
    """Another image changes answers less than none does: over that, chains move no further."""
    table = scaled_table(0.8 * CURVE, 0.6 * LINE, far_flip=0.42)
    v = verdict("C5", table)
    assert v.verdict == "inconclusive"
    assert v.reason.startswith(
        "depends on the scale: chains minus answers is 0.16 over depth 0, -0.05"
    )
    entry = claim_entry("C5")
    alone = {s: verdict_by("C5", entry | {"scales": [s]}, table).verdict for s in entry["scales"]}
    assert alone == {"depth 0": "supported", "another picture": "not supported"}


def test_signs_beyond_doubt_disagree_and_an_undecided_scale_does_not():
    spec = claim_entry("C5")

    class Drawn:
        means = dict.fromkeys(
            [f"edit_own|{c}" for c in ("run again", "one pixel", "another picture")], 0.0
        )

    def found(first, second):
        effects = {"depth 0": Interval(*first, *first[1:]), "other": Interval(*second, *second[1:])}
        return _pattern(spec, Drawn, effects)

    more, wide, less = (0.2, 0.1, 0.3), (0.04, -0.1, 0.2), (-0.2, -0.3, -0.1)
    assert found(more, wide) is None
    assert found(more, less)["reason"].startswith("depends on the scale")
    assert found(less, more)["reason"].startswith("depends on the scale")
    assert found(less, wide)["verdict"] == found(less, less)["verdict"] == "not supported"
    assert found(wide, less)["verdict"] == "inconclusive"
    assert _outcome(Interval(0.02, 0.01, 0.04, 0.01, 0.03), 0.05)[0] == "no more"


def test_words_of_the_question_are_no_words_of_the_chain():
    table = simulate(**CHAIN_ONLY, n=4).assign(question="is a red circle there ?")
    table["output"] = [
        "a red circle 3 there . so the answer is yes ."
        if d == max(DEPTHS) and not c
        else "a blue circle 4 there . so the answer is yes ."
        for d, c in zip(table["depth"], table["control"], strict=True)
    ]
    found = compare(table)
    cut = found[found["depth"] == 0]
    assert cut["own_words"].tolist() == ["blue 4 . so the"] * 4
    assert cut["edit"].tolist() == pytest.approx([2 / 8] * 4)
    assert cut["edit_own"].tolist() == pytest.approx([2 / 5] * 4)
    assert cut["edit_own_chance"].tolist() == pytest.approx([2 / 5] * 4)
    assert "edit_own" not in compare(table.drop(columns="question"))


def test_an_end_of_a_scale_that_is_not_there_is_not_testable():
    v = verdict("C5", scaled_table(0.8 * CURVE, 0.38 * LINE))
    assert v.verdict == "not testable"
    assert "answers hardly depend on the picture: without any they move 0.47" in v.reason


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


def test_what_cannot_be_told_is_said(planted):
    table = simulate(**CHAIN_ONLY)
    few = verdict("C5", planted[planted["sample"].isin([f"s{i}" for i in range(20)])])
    assert few.verdict == "inconclusive" and "20 images" in few.reason
    blind = table.copy()
    elsewhere = blind["control"] == "another picture"
    own = table[(table["depth"] == max(DEPTHS)) & (table["control"] == "")]
    blind.loc[elsewhere, "output"] = own["output"].to_numpy()
    v = verdict("C5", compare(blind))
    assert v.verdict == "not testable" and "hardly depend on the picture" in v.reason
    assert "without any" in decide().reason
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


def test_scales_by_hand(planted):
    found = sensitivity("C5", planted).set_index("variant")["effect"]
    names = ["edit_own", "flip", "edit_own_chance", "flip_chance"]
    plain = planted[planted["control"] == ""].groupby("depth")[names].mean()
    far = planted[planted["control"] == "another picture"][names].mean()

    def area(curves):
        return np.trapezoid(curves["edit_own"] - curves["flip"], curves.index / max(DEPTHS))

    def over_chance(means):
        return pd.DataFrame({n: means[n] / means[f"{n}_chance"] for n in names[:2]})

    ends = {n: far[n] / far[f"{n}_chance"] for n in names[:2]}
    assert found["as registered"] == pytest.approx(area(plain / plain.loc[0]))
    other = found["over the distance under another picture"]
    assert other == pytest.approx(area(over_chance(plain) / ends))
    unrelated = found["over the distance of unrelated outputs"]
    assert unrelated == pytest.approx(area(over_chance(plain)))
    means = {"edit|0": 0.8, "edit|4": 0.4, "edit_chance|4": 0.5, "edit_chance|0": 1.0}
    assert float(_scaled(means, "edit", 0, "depth 0")) == 1.0
    assert float(_scaled(means, "edit", 4, "depth 0")) == 0.5
    assert float(_scaled(means, "edit", 4, "depth 0 over chance")) == 1.0
    assert float(_scaled(means, "edit", 4)) == 0.8


def test_runs_that_do_not_repeat_are_inconclusive():
    table = simulate(**CHAIN_ONLY)
    again = table["control"] == "run again"
    table.loc[again, "output"] = table.loc[again, "output"].str.replace("w1", "w2")
    v = verdict("C5", compare(table))
    assert v.verdict == "inconclusive" and "two runs of the same model" in v.reason


def test_missing_columns_are_named(planted):
    with pytest.raises(ValueError, match=r"edit_own_chance: pass what chains\.compare of a table"):
        verdict("C5", planted.drop(columns="edit_own_chance"))


def test_order_and_copies_of_rows_do_not_matter(planted):
    one = verdict("C5", planted)
    table = simulate(**CHAIN_ONLY)
    two = verdict("C5", compare(table.sample(frac=1, random_state=0)).sort_values("sample"))
    assert one.verdict == two.verdict
    assert one.effect == pytest.approx(two.effect)


def test_variants_and_the_record(planted):
    both = pd.concat([planted, planted.assign(mode="renumber")])
    found = sensitivity("C5", both).set_index("variant")["verdict"]
    assert found["as registered"] == found["positions closed up"] == "supported"
    assert found["image states frozen"] == "not testable"
    assert found["over the distance under another picture"] == "supported"
    assert found["places only"] != "not testable"  # 24 images: too few
    v, entry = decide(**CHAIN_ONLY), claim_entry("C5")
    record = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert record["thresholds"]["margin_difference"] == entry["margins"]["difference"]["value"]
    assert record["n_images"] == 48
    assert len(str(v).splitlines()) <= 10
