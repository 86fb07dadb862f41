"""Bootstrap, stabilisation layer, contrasts, tests and bands: known answers first."""

import time
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visdepth_utils.significance import (
    benjamini_hochberg,
    cliffs_delta,
    cohens_dz,
    holm,
    mcnemar_exact,
    sign_flip,
)
from visdepth_utils.statistics import (
    cluster_bootstrap,
    early_share,
    equivalence,
    layer_bands,
    non_inferiority,
    paired_contrast,
    resample_weights,
    share_of_change,
    stabilisation_depth,
    stabilisation_layer,
    tail_range,
)

RNG = np.random.default_rng

# ---------------------------------------------------------------- p values


def test_mcnemar_exact():
    assert mcnemar_exact(10, 2) == pytest.approx(0.03857421875, abs=1e-14)
    assert mcnemar_exact(2, 10) == mcnemar_exact(10, 2)
    assert mcnemar_exact(0, 0) == 1.0 and mcnemar_exact(5, 5) == 1.0
    with pytest.raises(ValueError, match="-1"):
        mcnemar_exact(-1, 2)


def test_holm_and_bh():
    p = [0.01, 0.04, 0.03]
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06])
    assert benjamini_hochberg(p) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0] and len(holm([])) == 0
    assert len(benjamini_hochberg([])) == 0
    for adjust in (holm, benjamini_hochberg):
        for bad in ([0.1, np.nan], [1.2], [-0.1]):
            with pytest.raises(ValueError, match="p values"):
                adjust(bad)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_corrections_are_ordered(p):
    raw, bh, family = np.array(p), benjamini_hochberg(p), holm(p)
    assert (raw <= bh + 1e-12).all() and (bh <= family + 1e-12).all()
    assert (family <= np.minimum(raw * len(p), 1) + 1e-12).all()
    assert (np.diff(family[np.argsort(raw, kind="stable")]) >= 0).all()


def test_sign_flip_exact():
    assert sign_flip([1.0, 2, 3, 4]) == 2 / 16
    assert sign_flip([1.0, 2, 3, 4], alternative="greater") == 1 / 16
    assert sign_flip([1.0, 2, 3, 4], alternative="less") == 1.0
    assert sign_flip([1.0, -1.0]) == 1.0 and sign_flip([0.0, 0.0, 0.0]) == 1.0
    # Four items of two images are two units, not four.
    assert sign_flip([1.0, 2, 3, 4], ["a", "a", "b", "b"]) == 2 / 4
    assert sign_flip([1.0, 2, np.nan, 3, 4]) == 2 / 16
    assert np.isnan(sign_flip([np.nan]))
    with pytest.raises(ValueError, match="alternative"):
        sign_flip([1.0], alternative="up")


def test_sign_flip_by_sampling_is_calibrated_and_never_zero():
    rng = RNG(0)
    null = [sign_flip(rng.standard_t(3, 30), n_perm=500, seed=s) for s in range(200)]
    assert 0.01 <= np.mean(np.array(null) <= 0.05) <= 0.10
    assert sign_flip(np.ones(40) + rng.normal(size=40) * 0.1, n_perm=1000) == 1 / 1000


def test_effect_sizes():
    assert cohens_dz([1.0, 2, 3]) == pytest.approx(2.0)
    assert cohens_dz([0.0, 2, 2, 2, 3, np.nan], list("aabbcc")) == pytest.approx(2.0)
    assert np.isnan(cohens_dz([1.0, 1, 1])) and np.isnan(cohens_dz([1.0]))
    assert cliffs_delta([3, 4], [1, 2]) == 1 and cliffs_delta([1, 2], [3, 4]) == -1
    assert cliffs_delta([1, 2, 3], [2]) == 0


# ---------------------------------------------------------------- cluster bootstrap


def test_one_item_per_cluster_is_the_ordinary_bootstrap():
    x = RNG(1).exponential(size=(40, 3))
    ids = [f"image-{i}" for i in RNG(2).permutation(40)]  # names in any order
    found = cluster_bootstrap(x, ids, B=500, seed=7)
    chosen = RNG(7).integers(0, 40, size=(500, 40))
    ordinary = x[chosen].mean(axis=1)
    assert np.allclose(found.distribution, ordinary, atol=1e-12)
    assert np.allclose([found.lo, found.hi], np.quantile(ordinary, [0.025, 0.975], axis=0))
    assert np.allclose(found.estimate, x.mean(axis=0))
    assert (found.n_clusters, found.n_items) == (40, 40)


def test_duplicates_inside_a_cluster_change_nothing_but_fool_the_naive_interval():
    x, ids = RNG(0).normal(size=50), np.arange(50)
    once = cluster_bootstrap(x, ids)
    many, names = np.repeat(x, 4), np.repeat(ids, 4)
    clustered = cluster_bootstrap(many, names)
    naive = cluster_bootstrap(many, np.arange(200))
    assert clustered.lo == pytest.approx(once.lo, abs=1e-12)
    assert clustered.hi == pytest.approx(once.hi, abs=1e-12)
    assert (once.hi - once.lo) / (naive.hi - naive.lo) == pytest.approx(2, rel=0.1)


def test_unequal_clusters_are_weighted_by_their_items():
    x, ids = np.array([0.0, 1, 1, 1]), np.array([5, 9, 9, 9])
    found = cluster_bootstrap(x, ids, B=4000)
    assert found.estimate == 0.75
    shares = {v: np.mean(np.isclose(found.distribution, v)) for v in (0, 0.75, 1)}
    assert [*shares.values()] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_coverage_on_correlated_items():
    """Naive intervals cover far too rarely; clustered ones fall a little short of 95%."""
    hits = {"cluster": 0, "naive": 0}
    for seed in range(150):
        rng = RNG(seed)
        image = rng.exponential(size=(30, 1)) - 1
        x = (image + 0.5 * rng.normal(size=(30, 4))).ravel()
        for name, ids in (("cluster", np.repeat(np.arange(30), 4)), ("naive", np.arange(120))):
            found = cluster_bootstrap(x, ids, B=300, seed=seed)
            hits[name] += found.lo <= 0 <= found.hi
    assert 0.85 <= hits["cluster"] / 150 <= 0.98
    assert hits["naive"] / 150 < 0.80


def test_missing_values_are_left_out_of_each_mean():
    x = RNG(0).normal(size=(30, 4))
    x[:10, 1], x[:, 2] = np.nan, np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cluster_bootstrap(x, np.arange(30), B=300)
    assert found.estimate[1] == pytest.approx(x[10:, 1].mean())
    assert np.isfinite(found.lo).tolist() == [True, True, False, True]
    assert np.isnan(found.estimate[2]) and np.isnan(found.hi[2])


def test_one_image_has_no_interval():
    found = cluster_bootstrap(np.arange(6.0), ["a"] * 6)
    assert found.estimate == 2.5 and np.isnan(found.lo) and np.isnan(found.hi)
    assert found.n_clusters == 1


def test_resamples_are_paired_between_calls_and_tables():
    x, ids = RNG(0).normal(size=(60, 5)), np.repeat(np.arange(20), 3)
    a, b = (cluster_bootstrap(t, ids, B=200, seed=3).distribution for t in (x, 2 * x + 1))
    assert np.allclose(2 * a + 1, b)
    shifted = paired_contrast(x + 0.3, x, ids, B=200)
    assert np.allclose([shifted.lo, shifted.hi], 0.3) and np.allclose(shifted.estimate, 0.3)
    codes, weights = resample_weights(ids, 200, 3)
    assert weights.shape == (200, 20) and (weights.sum(axis=1) == 20).all() and codes.max() == 19
    assert (weights != resample_weights(ids, 200, 4)[1]).any()


def test_hull_contains_a_noisy_range_that_the_percentile_interval_misses():
    """A range of noisy means is inflated once in the data and once more in every resample."""
    hits = {"percentile": 0, "hull": 0}
    for seed in range(40):
        x = RNG(seed).normal(size=(40, 60))  # true range 0
        for interval in hits:
            found = cluster_bootstrap(
                x, np.arange(40), lambda m: np.ptp(m, axis=-1), B=200, interval=interval, seed=seed
            )
            hits[interval] += found.lo <= found.estimate <= found.hi
    assert hits["hull"] == 40 and hits["percentile"] < 20


def test_statistic_of_several_tables():
    rng = RNG(0)
    a, b = rng.normal(2, 0.1, 50), rng.normal(4, 0.1, 50)
    ratio = cluster_bootstrap((a, b), np.arange(50), lambda x, y: x / y)
    assert ratio.estimate == pytest.approx(a.mean() / b.mean())
    assert ratio.lo < 0.5 < ratio.hi and ratio.hi - ratio.lo < 0.03


@pytest.mark.parametrize(
    "call,named",
    [
        (lambda: cluster_bootstrap(np.ones(4), [1, 2, 3]), r"\[3, 4\] rows"),
        (lambda: cluster_bootstrap((np.ones(4), np.ones(5)), [1] * 4), r"\[4, 5\] rows"),
        (lambda: cluster_bootstrap(np.ones(4), range(4), interval="bca"), "interval 'bca'"),
        (lambda: cluster_bootstrap(np.ones(2), [1, np.nan]), "name is missing"),
        (lambda: cluster_bootstrap(np.ones(0), []), "name is missing"),
        (lambda: stabilisation_layer(np.ones(4), [1] * 4, 0.1), "samples, layers"),
        (lambda: stabilisation_layer(np.ones((4, 3)), range(4), 0), "delta > 0"),
        (lambda: stabilisation_layer(np.ones((4, 3)), range(4), 1, layers=[1, 2]), "2 of 3"),
    ],
)
def test_wrong_calls_are_named(call, named):
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_two_thousand_resamples_are_quick():
    table, ids = RNG(0).normal(size=(300, 13)), np.repeat(np.arange(150), 2)
    start = time.perf_counter()
    stabilisation_layer(table, ids, 0.05)
    assert time.perf_counter() - start < 1.5  # about 0.1 s alone; slack for a busy machine


# ---------------------------------------------------------------- stabilisation


def test_tail_range():
    assert tail_range([3.0, 1, 2, 2]).tolist() == [2, 1, 0, 0]
    assert tail_range(np.array([[0.0, 1], [5, 2]])).tolist() == [[1, 0], [3, 0]]
    gap = tail_range([np.nan, 4.0, np.nan, 1.0])
    assert gap == pytest.approx([np.nan, 3, np.nan, 0], nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_tail_range_never_grows_with_depth(curve):
    tr = tail_range(curve)
    assert (np.diff(tr) <= 0).all() and tr[-1] == 0 and tr[0] == max(curve) - min(curve)


LAYERS = np.arange(28)
CURVES = {  # noise-free curve, first layer from which it stays within 0.05
    "fast decay": (0.3 * np.exp(-LAYERS / 2), 4),
    "slow decay": (0.3 * np.exp(-LAYERS / 8), 13),
    "linear drift": (-0.3 * LAYERS / 27, 23),
    "late jump": (np.where(LAYERS < 24, 0.3, 0.0), 24),
    "early and slow drift": (0.2 * np.exp(-LAYERS / 1.5) - 0.1 * LAYERS / 27, 14),
    "oscillation": (0.1 * np.cos(2 * np.pi * LAYERS / 6), 26),
    "flat": (0 * LAYERS, 0),
}
IDS = np.arange(40)


def simulate(name, seed, spread=0.1, noise=0.015):
    rng = RNG(seed)
    sample = spread * rng.normal(size=(40, 1)) + noise * rng.normal(size=(40, 28))
    return CURVES[name][0] + sample


@pytest.mark.parametrize("name", CURVES)
def test_stabilisation_layer_finds_simulated_truths(name):
    curve, truth = CURVES[name]
    assert np.flatnonzero(tail_range(curve) <= 0.05)[0] == truth
    runs = [stabilisation_layer(simulate(name, s), IDS, 0.05, B=400) for s in range(20)]
    found = np.array([r.l_star for r in runs])
    assert abs(np.median(found) - truth) <= 2
    assert (np.abs(found - truth) <= 2).mean() >= 0.9, found
    assert all(r.changed == (name != "flat") for r in runs)
    for r in runs:
        assert r.l_star_half >= r.l_star >= r.l_star_double
        assert r.z_star == pytest.approx(r.l_star / 27)
        assert r.tr0_lo <= r.tr0 <= r.tr0_hi
        assert abs(r.tr0 - np.ptp(curve)) < 0.02 and (r.tail_upper >= r.tail_range - 1e-3).all()
        assert r.z_plugin <= r.z_star and r.z_distribution.shape == (400,)


def test_rival_rules_fail_where_this_one_does_not():
    drift, jump = CURVES["linear drift"][0] + 1, CURVES["late jump"][0] + 1
    for curve, truth in ((drift, 23), (jump, 24)):
        steps = np.abs(np.diff(curve)) / curve[:-1]
        assert np.argmax(steps < 0.05) == 0  # "first step below 5%" calls both stable at once
        assert stabilisation_depth(curve, 0.05) * 27 == truth


def test_paired_contrast_of_depth_finds_differences_and_only_those():
    def depth(means):
        return stabilisation_depth(means, 0.05)

    false, found = 0, 0
    for seed in range(20):
        decay, other = simulate("fast decay", seed), simulate("fast decay", seed + 500)
        drift = simulate("linear drift", seed + 900)
        same = paired_contrast(other, decay, IDS, depth, B=400)
        false += not same.lo <= 0 <= same.hi
        found += paired_contrast(drift, decay, IDS, depth, B=400).lo > 0.3
    assert false == 0 and found == 20


def test_layer_numbers_of_the_columns_are_used():
    table = simulate("fast decay", 0)[:, 1:]
    plain = stabilisation_layer(table, IDS, 0.05, B=300)
    named = stabilisation_layer(table, IDS, 0.05, B=300, layers=LAYERS[1:])
    assert named.l_star == plain.l_star + 1
    assert named.z_star == pytest.approx(named.l_star / 27)


def test_unmeasured_layers_and_single_images_give_no_answer():
    table = simulate("fast decay", 0)
    table[:, 0] = np.nan
    found = stabilisation_layer(table, IDS, 0.05, B=300)
    assert np.isnan(found.tail_range[0]) and found.tr0 == found.tail_range[1] and found.changed
    for bad, ids in ((np.full((40, 28), np.nan), IDS), (table, np.zeros(40))):
        none = stabilisation_layer(bad, ids, 0.05, B=300)
        assert none.l_star is None and np.isnan(none.z_star) and not none.changed


def test_share_of_change():
    assert share_of_change(np.array([1.0, 0, 0, 0])) == 1
    assert share_of_change(np.array([1.0, 1, 1, 0])) == 0
    assert share_of_change(-LAYERS / 27) == pytest.approx(1 / 3)
    assert share_of_change(np.arange(13.0)) == pytest.approx(4 / 12)  # layer 4 of 12, not 3
    assert np.isnan(share_of_change(np.ones(5)))
    assert share_of_change(np.arange(5.0), at=0.5) == pytest.approx(0.5)


def test_early_share_has_an_interval():
    early = early_share(simulate("fast decay", 0), IDS, B=500)
    late = early_share(simulate("late jump", 0), IDS, B=500)
    assert 0.8 < early.lo < early.estimate < early.hi < 1.1 and early.hi > 0.989
    assert late.lo < 0.2 and late.estimate < 0.2
    assert pytest.approx(float(share_of_change(CURVES["fast decay"][0])), abs=1e-3) == 0.989
    tables = simulate("fast decay", 0), simulate("late jump", 0)
    gap = paired_contrast(*tables, IDS, share_of_change, B=500)
    assert gap.lo > 0.5 and gap.estimate == pytest.approx(early.estimate - late.estimate)


def test_trained_minus_control_of_a_contrast():
    text, image = simulate("linear drift", 1), simulate("fast decay", 2)
    control = simulate("fast decay", 3), simulate("fast decay", 4)

    def contrast(a, b, c, d):
        depth = [stabilisation_depth(x, 0.05) for x in (a, b, c, d)]
        return (depth[0] - depth[1]) - (depth[2] - depth[3])

    assert cluster_bootstrap((text, image, *control), IDS, contrast, B=400).lo > 0.3


# ---------------------------------------------------------------- margins


def test_non_inferiority_is_about_the_bound_not_the_mean():
    rng, ids = RNG(0), np.arange(200)
    small = rng.normal(0.01, 0.05, 200)
    found, passed = non_inferiority(small, ids, 0.03)
    assert passed and small.mean() < found.hi < 0.03
    assert found.hi == pytest.approx(small.mean() + 1.645 * small.std() / np.sqrt(200), abs=1e-3)
    noisy = rng.normal(0.01, 0.5, 200)
    noisy += 0.01 - noisy.mean()
    assert not non_inferiority(noisy, ids, 0.03)[1]
    assert not non_inferiority(np.zeros(5), ["a"] * 5, 0.03)[1]  # one image proves nothing


def test_equivalence_needs_both_sides():
    ids, x = np.arange(200), RNG(0).normal(0, 0.05, 200)
    assert equivalence(x - x.mean(), ids, 0.03)[1]
    assert not equivalence(x - x.mean() - 0.05, ids, 0.03)[1]
    assert not equivalence(x - x.mean() + 0.05, ids, 0.03)[1]
    assert non_inferiority(x - x.mean() - 0.05, ids, 0.03)[1]


# ---------------------------------------------------------------- bands


def tidy(n_images=12, per_image=2, layers=5):
    rng, rows = RNG(0), []
    for i in range(n_images):
        for q in range(per_image):
            for modality in ("image", "text"):
                for layer in range(layers):
                    value = layer + (modality == "text") * 10 + rng.normal()
                    rows.append((f"{i}-{q}", f"i{i}", modality, layer, "entropy", value, 64, ""))
    columns = ["sample", "image", "modality", "layer", "metric", "value", "n_tokens", "note"]
    return pd.DataFrame(rows, columns=columns)


def test_layer_bands_are_the_cluster_bootstrap_of_each_layer():
    table = tidy()
    table.loc[(table.layer == 3) & (table.image != "i0"), "value"] = np.nan
    table.loc[table.layer == 4, "value"] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bands = layer_bands(table, B=300, seed=2)
    assert list(bands) == ["modality", "layer", "metric", "mean", "lo", "hi", "n_images"]
    assert len(bands) == 10 and set(bands.metric) == {"entropy"}
    one = bands[(bands.modality == "text") & (bands.layer == 2)].iloc[0]
    part = table[(table.modality == "text") & (table.layer == 2)]
    alone = cluster_bootstrap(part.value.to_numpy(), part.image, B=300, seed=2)
    assert [one["mean"], one.lo, one.hi] == pytest.approx([alone.estimate, alone.lo, alone.hi])
    assert bands.groupby("layer").n_images.first().tolist() == [12, 12, 12, 1, 0]
    assert bands[bands.layer == 4][["mean", "lo", "hi"]].isna().all(axis=None)


def test_rows_in_any_order_give_the_same_bands():
    table = tidy()
    a = layer_bands(table, B=200).sort_values(["modality", "layer"])
    shuffled = table.sort_values(["layer", "value"])
    b = layer_bands(shuffled, B=200).sort_values(["modality", "layer"])
    assert np.allclose(a["mean"], b["mean"]) and np.allclose(a.hi, b.hi, atol=0.2)


def test_simultaneous_bands_are_wider_and_hold_everywhere_at_once():
    table = tidy(30, 1, 8)
    one, all_ = layer_bands(table, B=500), layer_bands(table, B=500, simultaneous=True)
    assert ((all_.hi - all_.lo) > (one.hi - one.lo)).all()
    held = {True: 0, False: 0}
    for seed in range(60):
        rng = RNG(seed)
        frame = table[table.modality == "image"].assign(value=rng.normal(size=240))
        for simultaneous in held:
            bands = layer_bands(frame, B=300, simultaneous=simultaneous)
            held[simultaneous] += ((bands.lo <= 0) & (bands.hi >= 0)).all()
    assert held[True] >= 50 and held[False] <= 47


def test_layer_bands_name_what_is_wrong():
    with pytest.raises(ValueError, match="no column image"):
        layer_bands(tidy().drop(columns="image"))
    with pytest.raises(ValueError, match="several values per sample"):
        layer_bands(pd.concat([tidy(), tidy()]))
    lonely = layer_bands(tidy(1), B=100)
    assert lonely.lo.isna().all() and np.isfinite(lonely["mean"]).all()
