"""Bootstrap, tail range and bands: known answers first."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strict import no_warnings
from visdepth_utils.claims.bootstrap import (
    cluster_bootstrap,
    layer_bands,
    resample_weights,
    tail_range,
)

RNG = np.random.default_rng

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
    with no_warnings():
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
    shifted = cluster_bootstrap((x + 0.3, x), ids, lambda a, b: a - b, B=200)
    assert np.allclose([shifted.lo, shifted.hi], 0.3) and np.allclose(shifted.estimate, 0.3)
    codes, weights = resample_weights(ids, 200, 3)
    assert weights.shape == (200, 20) and (weights.sum(axis=1) == 20).all() and codes.max() == 19
    assert (weights != resample_weights(ids, 200, 4)[1]).any()


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
        (lambda: cluster_bootstrap(np.ones(2), [1, np.nan]), "name is missing"),
        (lambda: cluster_bootstrap(np.ones(0), []), "name is missing"),
    ],
)
def test_wrong_calls_are_named(call, named):
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- tail range


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
    with no_warnings():
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
