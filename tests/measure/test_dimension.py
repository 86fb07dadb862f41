"""Intrinsic dimension: exact laws, known manifolds, duplicates, and agreement with the library."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visdepth_utils.measure.geometry.dimension import (
    Neighbours,
    mle_from_gram,
    neighbours,
    twonn_from_gram,
)
from visdepth_utils.measure.geometry.gram import draws, gram

ESTIMATORS = {"twonn": twonn_from_gram, "mle": mle_from_gram}


def dimension(x: np.ndarray, estimator: str = "twonn", **options) -> float:
    return float(ESTIMATORS[estimator](gram(x), **options)[0])


def distinct(x: np.ndarray, **options) -> int:
    return int(neighbours(gram(x), **options).keep.sum())


def manifold(kind: str, d: int, n: int, seed: int, dims: int = 0) -> np.ndarray:
    """Uniform sphere S^d, uniform ball or gaussian of dimension d; optionally rotated into more."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d + (kind == "sphere")))
    if kind != "gaussian":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    if kind == "ball":
        x *= rng.random((n, 1)) ** (1 / d)
    if dims:
        x = x @ np.linalg.qr(rng.normal(size=(dims, x.shape[1])))[0].T
    return x


def table(r1: np.ndarray, r2: np.ndarray) -> Neighbours:
    """Neighbour table with given distances."""
    distances = torch.from_numpy(np.stack([r1, r2], -1))
    return Neighbours(distances, distances[:, 0] > 0, torch.tensor(True))


@pytest.mark.parametrize("n", [64, 1000])
@pytest.mark.parametrize("d", [2, 5, 20])
def test_twonn_is_exact_on_the_quantiles_of_its_own_law(d, n):
    mu = np.append((1 - np.arange(1, n) / n) ** (-1 / d), 1e3)
    exact = table(np.ones(n), mu)
    assert twonn_from_gram(exact, method="linear")[0] == pytest.approx(d, rel=1e-12)
    ratio = {64: 0.9636, 1000: 0.9976}[n]
    assert twonn_from_gram(exact)[0] / d == pytest.approx(ratio, abs=5e-5)
    skdim = pytest.importorskip("skdim")
    for method in ("linear", "mle"):
        theirs = skdim.id.TwoNN(dist=True, method=method).fit(exact.distances).dimension_
        assert twonn_from_gram(exact, method=method)[0] == pytest.approx(theirs, rel=1e-12)


def test_twonn_linear_cannot_keep_all_ratios():
    with pytest.raises(ValueError, match="discard_fraction"):
        dimension(np.eye(64), method="linear", discard_fraction=0)


def test_twonn_without_censoring_is_dadapy_ml():
    x = manifold("gaussian", 5, 200, 0)
    nb = neighbours(gram(x), k=2)
    log_mu = (nb.distances[:, 1] / nb.distances[:, 0]).log().numpy()
    dadapy = (len(x) - 1) / log_mu.sum()
    assert dimension(x, discard_fraction=0) == pytest.approx(dadapy, rel=1e-10)


# Mean over seeds of TwoNN (linear) and MLE (k = 20) at N = 64, 256, 1024: reference table.
KNOWN = {
    ("sphere", 2): [(2.11, 2.00), (1.97, 1.99), (1.99, 2.00)],
    ("sphere", 5): [(4.86, 4.25), (4.77, 4.64), (4.83, 4.82)],
    ("sphere", 10): [(9.25, 7.01), (9.34, 8.16), (9.11, 8.72)],
    ("sphere", 20): [(14.8, 10.9), (15.5, 13.5), (16.5, 15.0)],
    ("ball", 2): [(1.98, 1.78), (1.93, 1.90), (2.00, 1.93)],
    ("ball", 5): [(4.58, 3.78), (4.52, 4.36), (4.77, 4.53)],
    ("ball", 10): [(7.67, 6.51), (8.49, 7.65), (8.98, 8.26)],
    ("ball", 20): [(14.3, 10.5), (15.3, 12.9), (16.3, 14.4)],
    ("gaussian", 2): [(2.01, 1.94), (2.08, 2.05), (1.96, 2.02)],
    ("gaussian", 5): [(5.07, 4.01), (5.00, 4.73), (5.11, 4.93)],
    ("gaussian", 10): [(8.62, 6.43), (8.98, 7.99), (9.82, 8.81)],
    ("gaussian", 20): [(14.4, 9.9), (15.8, 12.8), (17.2, 14.6)],
}


@pytest.mark.parametrize("kind,d", KNOWN)
def test_known_manifolds(kind, d):
    """Means over seeds reproduce the table; sd of TwoNN is about d / sqrt(0.9 N) per seed."""
    for (n, seeds), (twonn, mle) in zip(
        [(64, 20), (256, 8), (1024, 3)], KNOWN[kind, d], strict=True
    ):
        tables = [neighbours(gram(manifold(kind, d, n, s))) for s in range(seeds)]
        ours = np.mean([twonn_from_gram(t, method="linear")[0] for t in tables])
        # Both means carry sampling error: ours over `seeds`, theirs over 20, 10 or 4.
        sd = 1.3 * d / np.sqrt(0.9 * n)
        assert abs(ours - twonn) < 3.5 * sd * np.sqrt(1 / seeds + 1 / 4), (n, ours)
        assert np.mean([mle_from_gram(t)[0] for t in tables]) == pytest.approx(mle, rel=0.06)
    value = twonn_from_gram(tables[0])[0]
    if d == 20:
        assert 13 < value < 20
    else:
        assert value == pytest.approx(d, rel=0.15 if d <= 5 else 0.2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_embedding_in_many_dimensions_changes_nothing(estimator):
    flat, wide = manifold("ball", 5, 128, 3), manifold("ball", 5, 128, 3, dims=300)
    a, b = (dimension(x, estimator) for x in (flat, wide))
    assert a == pytest.approx(b, rel=1e-7)
    assert dimension(wide.astype("f4"), estimator) == pytest.approx(a, rel=1e-3)


def test_single_estimates_equal_scikit_dimension_on_the_points():
    skdim = pytest.importorskip("skdim")
    for seed in range(3):
        x = manifold("gaussian", 10, 256, seed, dims=64)
        for method in ("mle", "linear"):
            theirs = skdim.id.TwoNN(method=method).fit(x).dimension_
            assert dimension(x, method=method) == pytest.approx(theirs, rel=1e-9)
        theirs = skdim.id.MLE().fit(x, n_neighbors=20).dimension_
        assert dimension(x, "mle") == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("repeats", [0, 6])
def test_batched_subsets_equal_scikit_dimension_one_by_one(repeats):
    skdim = pytest.importorskip("skdim")
    x = manifold("gaussian", 8, 200, 1, dims=40) + 50  # a common offset must not matter
    x[: repeats + 1] = x[0]
    index = draws(200, 64, 8, seed=4)
    batch = gram(x).take(index)
    found = {m: twonn_from_gram(batch, method=m)[0] for m in ("mle", "linear")}
    mle = {c: mle_from_gram(batch, comb=c)[0] for c in ("mle", "mean")}
    for r, rows in enumerate(index):
        kept = np.unique(x[rows], axis=0)
        assert distinct(x[rows]) == len(kept)
        for method, ours in found.items():
            theirs = skdim.id.TwoNN(method=method).fit(kept).dimension_
            assert ours[r] == pytest.approx(theirs, rel=1e-9)
        for comb, ours in mle.items():
            theirs = skdim.id.MLE().fit(kept, n_neighbors=20, comb=comb).dimension_
            assert ours[r] == pytest.approx(theirs, rel=1e-9)
        for estimator, batched in (("twonn", found["mle"][r]), ("mle", mle["mle"][r])):
            assert batched == pytest.approx(dimension(x[rows], estimator), rel=1e-9)
    assert any(distinct(x[rows]) < 64 for rows in index) == bool(repeats)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_point_twice_equals_each_point_once(estimator):
    x = manifold("gaussian", 10, 128, 0, dims=256)
    both = np.concatenate([x, x[::-1]])
    assert dimension(both, estimator) == pytest.approx(dimension(x, estimator), rel=1e-9)
    assert distinct(both) == distinct(x) == 128


@pytest.mark.parametrize("noise", [0.0, 1e-8])
@pytest.mark.parametrize("copies", [6, 56])
def test_identical_and_near_identical_tokens_are_dropped(copies, noise):
    """Undropped, MLE silently reads 0.0 (6 copies) and TwoNN 10.8 (56 near copies)."""
    x = manifold("gaussian", 10, 256, 0, dims=256)
    x[:copies] = x[0] + noise * np.random.default_rng(1).normal(size=(copies, 256))
    for estimator in ESTIMATORS:
        rest = dimension(x[copies - 1 :], estimator)
        assert dimension(x, estimator) == pytest.approx(rest, rel=1e-6)
    assert distinct(x) == 256 - copies + 1


def test_tolerance_for_stored_precision_is_a_choice():
    x = manifold("gaussian", 10, 128, 0)
    x[:20] = x[0] * (1 + 1e-4 * np.arange(20)[:, None])
    assert distinct(x) == 128
    assert distinct(x, dtype_tol=1e-2) == 109
    assert dimension(x, dtype_tol=1e-2) == pytest.approx(dimension(x[19:]), rel=1e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    "states,reason",
    [
        (np.full((64, 8), 1.1), "1 distinct tokens of 64"),
        (np.full((64, 8), 1.1) + 6e-8 * np.random.default_rng(0).random((64, 8)), "1 distinct"),
        (np.zeros((64, 8)), "1 distinct"),
        (np.ones((1, 8)), "1 distinct tokens of 1,"),
        (np.random.default_rng(0).normal(size=(31, 8)), "31 distinct tokens of 31"),
        (np.where(np.eye(64, 8) > 0, np.nan, 1.0), "non-finite"),
        (np.where(np.eye(64, 8) > 0, np.inf, 1.0), "non-finite"),
        (np.full((64, 8), 1e200) * np.random.default_rng(0).normal(size=(64, 8)), "non-finite"),
        (np.eye(64), "equal distances"),
    ],
    ids=["same", "rounding", "zero", "one", "few", "nan", "inf", "overflow", "equidistant"],
)
def test_no_answer_is_nan_with_a_reason(states, reason, estimator):
    value, note = ESTIMATORS[estimator](gram(states))
    assert np.isnan(value) and reason in note
    values, note = ESTIMATORS[estimator](gram(states).take(np.tile(np.arange(len(states)), (3, 1))))
    assert np.isnan(values).all() and values.shape == (3,) and reason in note


def test_one_bad_subset_does_not_spoil_the_others():
    x = manifold("gaussian", 5, 100, 0)
    x[50:] = x[50]
    index = np.stack([np.arange(50), np.arange(50, 100), np.arange(0, 100, 2)])
    parts = gram(x).take(index)
    values, note = twonn_from_gram(parts, n_min=20)
    assert np.isfinite(values).tolist() == [True, False, True] and "1 distinct tokens of 50" in note
    assert neighbours(parts).keep.sum(-1).tolist() == [50, 1, 26]


def test_one_huge_token_is_harmless():
    x = manifold("gaussian", 10, 256, 0, dims=64)
    spoilt = x.copy()
    spoilt[7, 0] = 1e5
    for estimator in ("twonn", "mle"):
        clean = dimension(x, estimator)
        assert dimension(spoilt, estimator) == pytest.approx(clean, rel=0.05)


def test_lattice_trap_twonn_fails_on_a_grid_of_patches():
    """A smooth two-dimensional field on a 24 x 24 grid: true dimension 2."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 24)] * 2), -1).reshape(-1, 2)
    wave = np.sin(grid @ rng.normal(size=(2, 64)) * 3 + rng.random(64) * 6)
    assert dimension(wave) > 10
    assert 1.5 < dimension(wave, "mle") < 6
    quarter = gram(wave).take(draws(576, 144, 10))
    assert twonn_from_gram(quarter)[0].mean() < 6


def test_matched_n_subsets_agree_with_a_true_small_sample():
    """576 tokens read more dimensions than 48; subsets of 48 read what 48 tokens read."""
    scale = np.arange(1, 201) ** -0.5

    def sample(n, seed):
        return np.random.default_rng(seed).normal(size=(n, 200)) * scale

    big = gram(sample(576, 0))
    subset = twonn_from_gram(big.take(draws(576, 48)))[0]
    fresh = [dimension(sample(48, s)) for s in range(1, 21)]
    assert twonn_from_gram(big)[0] > 1.25 * np.mean(fresh)
    assert abs(subset.mean() - np.mean(fresh)) < 3 * np.std(fresh) / np.sqrt(5)


def test_draws_are_shared_without_replacement_and_never_smaller():
    a = draws(100, 64, 20, seed=("vqa-3", "image", 0))
    assert a.shape == (20, 64) and a.min() >= 0 and a.max() < 100
    assert all(len(set(row)) == 64 for row in a)
    assert (a == draws(100, 64, 20, seed=("vqa-3", "image", 0))).all()
    assert (a == draws(100, 64, 20, seed=["vqa-3", "image", np.int64(0)])).all()
    assert (a != draws(100, 64, 20, seed=("vqa-3", "text", 0))).any()
    assert draws(63, 64) is None and draws(0, 64) is None
    assert draws(64, 64).tolist() == [list(range(64))]
    coverage = np.bincount(draws(50, 10, 4000).ravel(), minlength=50)
    assert coverage.min() > 650 and coverage.max() < 950
    with pytest.raises(ValueError, match="n0"):
        draws(10, 1)


@pytest.mark.parametrize(
    "call,named",
    [
        (lambda: dimension(np.ones((64, 3)), method="ols"), "method 'ols'"),
        (lambda: dimension(np.ones(64)), r"\(64,\)"),
        (lambda: dimension(np.ones((0, 4))), r"\(0, 4\)"),
        (lambda: mle_from_gram(neighbours(gram(np.eye(9)), k=2)), "k=20"),
        (lambda: mle_from_gram(gram(np.eye(9)), comb="max"), "comb 'max'"),
    ],
)
def test_wrong_calls_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_tensors_of_any_precision_are_accepted():
    x = manifold("gaussian", 5, 64, 0)
    ours = dimension(torch.tensor(x, requires_grad=True))
    assert ours == pytest.approx(dimension(x), rel=1e-12)
    assert np.isfinite(dimension(torch.tensor(x).bfloat16(), dtype_tol=1e-3))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_invariant_to_scale_shift_rotation_and_order(seed, scale, shift):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(64, 12)) * np.linspace(0.2, 1, 12)
    q = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    y = (rng.permutation(x) @ q + shift) * scale
    for estimate in (twonn_from_gram, mle_from_gram):
        assert estimate(gram(x))[0] == pytest.approx(estimate(gram(y))[0], rel=1e-6)
    assert distinct(x) == distinct(y) == 64


def test_mle_needs_more_tokens_than_neighbours_whatever_n_min_says():
    x = manifold("gaussian", 3, 20, 0)
    value, note = mle_from_gram(gram(x), n_min=5)
    assert np.isnan(value) and "at least 21 needed" in note
    assert np.isfinite(dimension(x, "mle", n_min=5, k=10))


def test_duplicates_are_judged_against_the_spread_not_the_common_offset():
    x = manifold("gaussian", 5, 64, 0)
    x[1] = x[0] + 5e-3
    for center in (True, False):
        G = gram(x + 1e4, center=center)
        assert neighbours(G).keep.sum() == 64
        assert neighbours(G.take(np.arange(40)[None])).keep.sum() == 40
