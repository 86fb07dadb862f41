"""Other analyses of a claim: what is registered, what is judged, and what is counted."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from calibration.curves import LAYERS, curves_table, early_change
from calibration.truncated import DEPENDS, sweep_tables
from visdepth_utils.claims.c1 import curves_of, margin_of, parts_of
from visdepth_utils.claims.registry import claim_entry, load_claims, verdict_by
from visdepth_utils.claims.retention import tokens_of
from visdepth_utils.claims.specifications import (
    _merged,
    choices,
    robustness,
    specifications,
)

CLAIMS = [name for name, entry in load_claims()["claims"].items() if "specifications" in entry]


def paths(change, before=()):
    for key, value in change.items():
        if isinstance(value, Mapping):
            yield from paths(value, (*before, key))
        else:
            yield (*before, key)


@pytest.mark.parametrize("claim", CLAIMS)
def test_first_options_are_the_registered_analysis_and_choices_do_not_meet(claim):
    entry = claim_entry(claim)
    registered = entry
    for name, options in choices(entry).items():
        assert entry["specifications"][name]["why"], name
        first, *others = options.values()
        assert len(others) >= 1
        registered = _merged(registered, first)
        assert all(_merged(entry, other) != entry for other in others), name
    assert registered == entry
    for (a, one), (b, two) in itertools.combinations(choices(entry).items(), 2):
        shared = {p for o in one.values() for p in paths(o)} & {
            p for o in two.values() for p in paths(o)
        }
        assert not shared, (a, b, shared)


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_an_option_changes_is_there_to_be_changed(claim):
    entry = claim_entry(claim)
    for options in choices(entry).values():
        for change in options.values():
            for path in paths(change):
                inner = entry
                for key in path:
                    assert key in inner, path
                    inner = inner[key]


def test_the_registered_analysis_comes_first_and_is_judged_as_by_the_rule():
    table, controls = sweep_tables(DEPENDS, n=40)
    found = specifications("C4", table, control=controls, most=12)
    assert len(found) == 12
    entry = claim_entry("C4")
    entry["common"]["resamples"] = entry["common"]["specifications"]["resamples"]
    judged = verdict_by("C4", entry, table, controls)
    first = found.iloc[0]
    assert (first["verdict"], first["effect"]) == (judged.verdict, judged.effect)
    assert [first[name] for name in choices(entry)] == [
        next(iter(o)) for o in choices(entry).values()
    ]
    again = specifications("C4", table, control=controls, most=12)
    pd.testing.assert_frame_equal(found, again)
    lacking = found[found["positions"] == "closed up"]  # this mode is not among the rows
    assert set(lacking["verdict"]) == {"not testable"}
    assert lacking["reason"].str.contains("renumber").all()


def test_counts_are_exact():
    rows = [
        ("a third", "TwoNN", "supported", 0.5),
        ("a third", "maximum likelihood", "supported", 0.4),
        ("a half", "TwoNN", "not supported", -0.1),
        ("a half", "maximum likelihood", "supported", 0.2),
        ("a half", "maximum likelihood", "not testable", np.nan),
    ]
    names = ["early part", "estimator of the dimension", "verdict", "effect"]
    found = robustness("C1", pd.DataFrame(rows, columns=names))
    assert (found.n, found.agree, found.same_sign, found.fragile) == (4, 0.75, 0.75, False)
    assert found.moves == {"early part": 0.5, "estimator of the dimension": 0.5}
    assert str(found) == "holds in 75% of 4 analyses"
    turned = robustness("C1", pd.DataFrame(rows[2:4] + rows[:1], columns=names))
    assert turned.fragile
    assert turned.agree == pytest.approx(1 / 3)
    assert "fragile, mostly by the choice of early part" in str(turned)


def test_without_a_testable_analysis_nothing_is_fragile():
    rows = pd.DataFrame(
        [("a third", "not testable", np.nan)], columns=["early part", "verdict", "effect"]
    )
    found = robustness("C1", rows)
    assert (found.n, found.fragile) == (0, False)
    assert np.isnan(found.agree)


def test_a_claim_without_choices_is_refused():
    with pytest.raises(ValueError, match="C9.*has no specifications"):
        specifications("C9", pd.DataFrame())


# --- settings that only other analyses use ---


def test_content_tokens_are_those_that_the_image_moves():
    rows = pd.DataFrame(
        [
            ("s", "i", depth, token, kl)
            for token, curve in enumerate([(1.0, 0.5, 0.0), (0.05, 9.0, 0.0), (3.0, 1.5, 0.0)])
            for depth, kl in enumerate(curve)
        ]
        + [("t", "j", depth, 0, kl) for depth, kl in enumerate((0.01, 4.0, 0.0))],
        columns=["sample", "image", "depth", "token", "kl"],
    )
    spec = {"per_token": {"tokens": "content", "reads": 0.1}}
    found = tokens_of(spec, rows, "caption", pd.Index(["i", "j"]))
    # two content tokens: (1 + 0.5 + 3 + 1.5) over two depths, 4 nats at depth 0; image j has none
    assert found.loc["i"].to_dict() == {"kl": 3.0, "kl tokens": 2.0, "kl blind": 4.0}
    assert found.loc["j"].to_dict() == {"kl": 0.0, "kl tokens": 0.0, "kl blind": 0.0}
    spec["per_token"]["tokens"] = "all"
    every = tokens_of(spec, rows, "caption", pd.Index(["i", "j"]))
    assert every.loc["i", "kl"] == pytest.approx((1.5 + 9.05 + 4.5) / 6)
    assert every["kl tokens"].tolist() == [1.0, 1.0]


def test_function_words_hide_what_content_tokens_show():
    """Four of five tokens of a text need no image; the others are hit twice as hard."""
    table, controls = sweep_tables(DEPENDS, n=80, seed=3)
    tokens = controls["token_kl"].copy()
    text = tokens["task"] == "caption"
    tokens.loc[text & (tokens["token"] % 5 > 0), "kl"] = 0.0
    tokens.loc[text & (tokens["token"] % 5 == 0), "kl"] *= 0.8
    given = controls | {"token_kl": tokens}
    entry = claim_entry("C4")
    assert verdict_by("C4", entry, table, given).verdict == "supported"
    changed = _merged(entry, {"per_token": {"scale": "nats", "tokens": "all"}})
    assert verdict_by("C4", changed, table, given).verdict == "weaker"


def test_units_that_differ_between_tasks_do_not_pass_for_an_effect():
    """A text whose tokens lose the same share as single tokens, in units twice as large."""
    alike = dict.fromkeys(("mcq", "vqa", "caption"), DEPENDS["mcq"])
    table, controls = sweep_tables(
        alike, n=80, seed=1, words=1, harm={"mcq": 3, "vqa": 3, "chart": 3, "caption": 6}
    )
    entry = claim_entry("C4")
    nats = _merged(entry, {"per_token": {"scale": "nats"}})
    rows = verdict_by("C4", nats, table, controls).details.set_index("measure")
    assert rows.loc["divergence per content token, nats: text minus single-token", "lo"] > 0
    rows = verdict_by("C4", entry, table, controls).details.set_index("measure")
    row = rows.loc["divergence per content token, share of depth 0: text minus single-token"]
    assert row["lo"] < 0 < row["hi"]


def test_a_jump_in_the_last_layer_alone_is_seen_for_what_it_is():
    """Early change of three margins, then a plateau, and a jump in the very last state."""

    def with_jump(curve, size):
        return lambda z: curve(z) + size * (z > 10.5 / (LAYERS - 1))

    entropy, dimension, curvature = early_change(3)
    shape = (with_jump(entropy, 0.2), with_jump(dimension, 0.6), with_jump(curvature, 15))
    table = curves_table(shape, n=60)
    entry = claim_entry("C1")
    curves, _, _ = curves_of(entry, table)
    whole = parts_of(_merged(entry, {"drop_last": 0, "relative_share": None}), curves, LAYERS)
    assert whole["entropy"].label == "changes late"
    without = parts_of(entry, curves, LAYERS)
    assert {part.label for part in without.values()} == {"settles early"}


def test_a_relative_margin_is_a_share_of_the_curves_own_range():
    curve = pd.DataFrame([[1.0, 3.0, 2.0], [3.0, 5.0, 2.0]])
    entry = claim_entry("C1")
    metric = entry["metrics"]["entropy"]
    assert margin_of(entry, metric, curve) == metric["margin"]
    assert margin_of(entry | {"relative_margin": 0.25}, metric, curve) == 0.5
