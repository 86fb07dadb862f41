"""The rule of C6 on simulated scores whose recovered share is known."""

import json

import numpy as np
import pandas as pd
import pytest

from visdepth_utils.claims import c6
from visdepth_utils.claims.registry import claim_entry, sensitivity, verdict

LAYERS, CUT = 12, 4
FULL, LOST = 0.95, 0.2


def simulate(shares, *, n=96, shuffled=0.0, cut=CUT, seed=0, same_images=False, full=FULL):
    """Score of a state is a coin with probability LOST + share * (full - LOST), by image."""
    rng = np.random.default_rng(seed)
    rows = []
    for task, share in shares.items():
        states = {"full": 1.0, "truncated": 0.0, "recovered": share, "full trained": 1.0}
        if shuffled is not None:
            states["shuffled"] = shuffled
        for i in range(n):
            image = f"i{i}" if same_images else f"{task}{i}"
            draw = rng.random()
            for state, kept in states.items():
                depth = LAYERS if state.startswith("full") else cut
                score = float(draw < LOST + kept * (full - LOST))
                row = {"sample": f"{task}{i}", "image": image, "task": task, "mode": "remove"}
                rows.append(row | {"cut": cut, "depth": depth, "state": state, "score": score})
    return pd.DataFrame(rows)


def decide(shares, **options):
    return verdict("C6", simulate(shares, **options), model="simulated")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("same_images", [False, True])
def test_known_truths(seed, same_images):
    options = {"seed": seed, "same_images": same_images}
    yes = decide({"caption": 0.9, "chart": 0.2}, **options)
    assert yes.verdict == "supported" and yes.effect == pytest.approx(0.7, abs=0.12)
    neither = decide({"caption": 0.1, "chart": 0.1}, **options)
    assert neither.verdict == "not supported" and "of what they lost back" in neither.reason
    other = decide({"caption": 0.8, "chart": 0.95}, **options)
    assert other.verdict == "not supported" and "charts recover more than captions" in other.reason
    words = decide({"caption": 0.9, "chart": 0.2}, shuffled=0.9, **options)
    assert words.verdict == "weaker" and words.control_effect == pytest.approx(0.9, abs=0.1)
    unclear = decide({"caption": 0.5, "chart": 0.2}, **options)
    assert unclear.verdict in ("inconclusive", "not supported")


def test_the_share_is_a_ratio_of_means():
    table = simulate({"caption": 0.9, "chart": 0.2}, n=40)
    v = verdict("C6", table)
    means = table.groupby(["task", "state"])["score"].mean().unstack("state")
    share = (means["recovered"] - means["truncated"]) / (means["full"] - means["truncated"])
    assert v.effect == pytest.approx(share["caption"] - share["chart"])
    rows = v.details.set_index("measure")["estimate"]
    assert rows["chart: share back, recovered"] == pytest.approx(share["chart"])


def test_what_cannot_be_told_is_said():
    shares = {"caption": 0.9, "chart": 0.2}
    assert "20 images" in decide(shares, n=20).reason
    nothing = decide(shares, full=LOST)
    assert nothing.verdict == "not testable" and "does not lower" in nothing.reason
    bare = decide(shares, shuffled=None)
    assert bare.verdict == "inconclusive" and "was not tried" in bare.reason
    elsewhere = decide(shares, cut=5)
    assert elsewhere.verdict == "not testable" and "at this depth" in elsewhere.reason
    table = simulate(shares)
    untrained = verdict("C6", table[table["state"].isin(["full", "truncated"])])
    assert untrained.verdict == "not testable" and "no adapter was trained" in untrained.reason
    alone = verdict("C6", table[table["task"] == "caption"])
    assert alone.verdict == "not testable" and "'chart' was not measured" in alone.reason
    gone = table.copy()
    gone.loc[(gone["task"] == "chart") & gone["sample"].str.endswith(("1", "2", "3")), "score"] = (
        np.nan
    )
    assert "no value in every state" in verdict("C6", gone).reason
    shallow = verdict("C6", table.assign(depth=table["depth"].clip(upper=5)))
    assert shallow.verdict == "not testable" and "layers" in shallow.reason
    with pytest.raises(ValueError, match=r"table lacks column\(s\) cut"):
        verdict("C6", table.drop(columns="cut"))


def test_what_the_cut_costs_is_asked_before_training():
    table = simulate({"caption": 0.9, "chart": 0.2})
    found = c6.lost(claim_entry("C6"), table[table["state"].isin(["full", "truncated"])])
    assert {task: gap.lo > 0 for task, gap in found.items()} == {"caption": True, "chart": True}
    same = c6.lost(claim_entry("C6"), simulate({"chart": 0.5}, full=LOST))
    assert not same["chart"].lo > 0


@pytest.mark.parametrize(("layers", "depth"), [(12, 4), (8, 3), (28, 9), (6, 2)])
def test_the_cut_is_a_third_of_the_layers(layers, depth):
    assert c6.cut_depth(claim_entry("C6"), layers) == depth


def test_variants_and_the_record():
    shares = {"caption": 0.9, "chart": 0.2, "vqa": 0.9}
    found = sensitivity("C6", simulate(shares)).set_index("variant")["verdict"]
    assert found["as registered"] == "supported"
    assert found["against answers to questions"] in ("inconclusive", "not supported")
    assert found["against reasoning"] == found["cut at two thirds"] == "not testable"
    deep = simulate({"caption": 0.9, "chart": 0.2}, cut=8)
    both = pd.concat([simulate(shares), deep])
    found = sensitivity("C6", both).set_index("variant")["verdict"]
    assert found["cut at two thirds"] == "supported"
    v, entry = verdict("C6", simulate(shares)), claim_entry("C6")
    record = json.loads(json.dumps(v.to_dict(), allow_nan=False))
    assert record["thresholds"]["margin_recovered"] == entry["margins"]["recovered"]["value"]
    assert record["thresholds"]["distill"] == entry["distill"]
    shuffled = verdict("C6", simulate(shares).sample(frac=1, random_state=1))
    assert shuffled.verdict == v.verdict and shuffled.effect == pytest.approx(v.effect, abs=1e-12)
