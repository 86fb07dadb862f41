"""Matrix entropy, curvature, update ratio, CKA, sinks: closed forms first, then traps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.measure.plain_geometry import (
    debiased_cka,
    depth_curvature,
    matrix_entropy,
    update_ratio,
)
from tests.strict import no_warnings
from visdepth_utils.measure.geometry.cka_curvature import sink_mask
from visdepth_utils.measure.geometry.entropy import entropy_from_gram
from visdepth_utils.measure.geometry.gram import draws, gram

VARIANTS = ("raw", "row", "center", "center+row")
RNG = np.random.default_rng


def entropy(H, normalise="raw", **options):
    value, note = matrix_entropy(H, normalise=normalise, **{"scale": "none", **options})
    assert (note == "") == np.isfinite(value)
    return value


def equicorrelated(n, rho):
    return np.linalg.cholesky((1 - rho) * np.eye(n) + rho)


def power_law(n, d=64, seed=0, power=0.5):
    return RNG(seed).normal(size=(n, d)) / np.arange(1, d + 1) ** power


# ---------------------------------------------------------------- entropy: closed forms


def test_orthonormal_rows():
    H = np.linalg.qr(RNG(0).normal(size=(128, 64)))[0].T
    for normalise, known in (("raw", 4.158883), ("row", 4.158883)):
        assert entropy(H, normalise) == pytest.approx(known, abs=5e-7)
        assert entropy(H, normalise) == pytest.approx(np.log(64), abs=1e-12)
    for normalise in ("center", "center+row"):
        assert entropy(H, normalise) == pytest.approx(4.143135, abs=5e-7)
        assert entropy(H, normalise) == pytest.approx(np.log(63), abs=1e-12)


def test_identical_rows_are_zero_raw_and_undefined_once_centred():
    H = np.tile(RNG(0).normal(size=37), (64, 1)) * 1.1
    assert entropy(H, "raw") == pytest.approx(0, abs=1e-12)
    assert entropy(H, "row") == pytest.approx(0, abs=1e-12)
    for normalise in ("center", "center+row"):
        value, note = matrix_entropy(H, normalise=normalise)
        assert np.isnan(value) and note == "no spread between tokens"


def test_repeated_orthonormal_rows():
    H = np.repeat(np.eye(16), 5, axis=0)
    assert entropy(H) == pytest.approx(np.log(16), abs=1e-12)
    assert entropy(H) == pytest.approx(2.772589, abs=5e-7)


def test_two_orthogonal_clusters():
    H = np.repeat(np.eye(2, 5), [30, 70], axis=0)
    assert entropy(H) == pytest.approx(0.610864, abs=5e-7)
    assert entropy(H) == pytest.approx(-0.3 * np.log(0.3) - 0.7 * np.log(0.7), abs=1e-12)


def test_geometric_spectrum():
    assert entropy(np.diag(np.sqrt(0.5 ** np.arange(20)))) == pytest.approx(1.386280, abs=5e-7)
    assert entropy(np.diag(np.sqrt(0.5 ** np.arange(60)))) == pytest.approx(2 * np.log(2), abs=1e-9)


@pytest.mark.parametrize(
    "rho,s1,s2", [(0.1, 4.025484, 3.670303), (0.5, 2.732224, 1.340485), (0.9, 0.729476, 0.207063)]
)
def test_equal_cosines(rho, s1, s2):
    H = equicorrelated(64, rho)
    p = np.array([1 + 63 * rho] + 63 * [1 - rho]) / 64
    for normalise in ("raw", "row"):
        assert entropy(H, normalise) == pytest.approx(s1, abs=5e-7)
        assert entropy(H, normalise) == pytest.approx(-(p * np.log(p)).sum(), abs=1e-12)
        assert entropy(H, normalise, alpha=2) == pytest.approx(s2, abs=5e-7)
        assert entropy(H, normalise, alpha=3) == pytest.approx(-np.log((p**3).sum()) / 2, abs=1e-11)
        assert entropy(H, normalise, alpha=np.inf) == pytest.approx(-np.log(p[0]), abs=1e-12)
        rank = entropy(H, normalise, scale="effective_rank")
        assert rank == pytest.approx(np.exp(s1), rel=1e-6)
    assert entropy(H, "center") == pytest.approx(np.log(63), abs=1e-12)
    assert entropy(H, "center+row") == pytest.approx(np.log(63), abs=1e-12)


def test_marchenko_pastur():
    H = RNG(0).normal(size=(576, 4096))
    assert entropy(H) == pytest.approx(np.log(576) - 576 / (2 * 4096), abs=2e-3)
    assert entropy(H, "center") == pytest.approx(np.log(575) - 575 / (2 * 4096), abs=2e-3)


def test_scales_divide_by_the_named_maximum():
    for H in (RNG(0).normal(size=(20, 50)), RNG(0).normal(size=(50, 20))):
        n, d = H.shape
        raw = entropy(H, "center+row")
        for scale, top in (("log_n", n), ("max", min(n, d)), ("max_centred", min(n - 1, d))):
            assert entropy(H, "center+row", scale=scale) == pytest.approx(raw / np.log(top))
        assert matrix_entropy(H)[0] == entropy(H, "center+row", scale="log_n")
    H = np.eye(40)
    assert entropy(H, "center+row", scale="max_centred") == pytest.approx(1, abs=1e-12)


def test_variants_are_what_their_names_say():
    """Written out once more, by singular values."""
    H = power_law(40, 30) + 3

    def by_svd(Z):
        p = np.linalg.svd(Z, compute_uv=False) ** 2
        p = p[p > 0] / p.sum()
        return -(p * np.log(p)).sum()

    centred = H - H.mean(0)
    known = {
        "raw": H,
        "row": H / np.linalg.norm(H, axis=1, keepdims=True),
        "center": centred,
        "center+row": centred / np.linalg.norm(centred, axis=1, keepdims=True),
    }
    found = {v: entropy(H, v) for v in known}
    for variant, Z in known.items():
        assert found[variant] == pytest.approx(by_svd(Z), abs=1e-12)
    assert len({round(v, 6) for v in found.values()}) == 4


# ---------------------------------------------------------------- entropy: outliers, N, invariants


def test_outliers_move_each_variant_as_documented():
    n, d = 192, 512
    H = RNG(0).normal(size=(n, d)) / np.arange(1, d + 1) ** 0.5
    clean = {v: entropy(H, v) for v in VARIANTS}
    norm = np.linalg.norm(H, axis=1).mean()

    def moved(G):
        return {v: entropy(G, v) - clean[v] for v in VARIANTS}

    offset = moved(H + 5 * norm * np.linalg.qr(RNG(1).normal(size=(d, 1)))[0].T)
    assert offset["raw"] < -2 and offset["row"] < -2
    assert abs(offset["center"]) < 1e-9 and abs(offset["center+row"]) < 1e-9
    sink = H.copy()
    sink[3, 5] += 100 * norm
    change = moved(sink)
    assert change["raw"] < -3 and change["center"] < -3
    assert abs(change["row"]) < 0.02 and -1 < change["center+row"] < -0.1
    dropped = sink[~sink_mask(np.linalg.norm(sink, axis=1)[None])]
    assert len(dropped) == n - 1
    assert entropy(dropped, "center+row") == pytest.approx(clean["center+row"], abs=0.02)
    loud = H.copy()
    loud[:, 9] += 5 * norm  # the same value in every token: not variance
    assert abs(moved(loud)["center+row"]) < 1e-9 and moved(loud)["raw"] < -2
    varying = H.copy()
    varying[:, 9] += 5 * norm * RNG(2).random(n)
    assert all(v < -1 for v in moved(varying).values())
    twins = H.copy()
    twins[: n // 8] = H[0]
    assert all(v < -0.1 for v in moved(twins).values())


def test_more_tokens_of_one_distribution_read_differently_so_n_is_matched():
    big, wide = power_law(576, 200), {}
    for n in (24, 64, 256):
        wide[n] = np.mean([matrix_entropy(power_law(n, 200, s))[0] for s in range(5)])
    assert wide[24] > wide[64] + 0.02 > wide[256] + 0.04
    fresh = [matrix_entropy(power_law(64, 200, s))[0] for s in range(1, 21)]
    subset, note = entropy_from_gram(gram(big).take(draws(576, 64)))
    assert note == "" and subset.shape == (20,)
    assert abs(subset.mean() - np.mean(fresh)) < 3 * np.std(fresh)


@pytest.mark.parametrize("shape", [(100, 300), (100, 40)])
@pytest.mark.parametrize("alpha", [0.5, 1, 2, 3])
@pytest.mark.parametrize("scale", ["log_n", "max_centred", "none", "effective_rank"])
def test_subset_gram_equals_states_of_the_subset(shape, alpha, scale):
    H = RNG(0).normal(size=shape) / np.arange(1, shape[1] + 1) ** 0.5 + 20
    index = draws(len(H), 64, 5)
    for normalise in VARIANTS:
        options = {"normalise": normalise, "alpha": alpha, "scale": scale}
        batch = gram(H, center="center" in normalise).take(index)
        values, note = entropy_from_gram(batch, **options)
        assert note == "" and values.shape == (5,)
        for value, rows in zip(values, index, strict=True):
            # Half orders feel eigenvalues at rounding level.
            tolerance = {"rel": 1e-6} if alpha < 1 else {"rel": 1e-11}
            assert value == pytest.approx(matrix_entropy(H[rows], **options)[0], **tolerance)


def test_large_common_offset_keeps_its_digits():
    H = power_law(64, 128)
    for offset in (1e2, 1e4):
        shifted = H + offset
        assert matrix_entropy(shifted)[0] == pytest.approx(matrix_entropy(H)[0], rel=1e-8)
        batched, _ = entropy_from_gram(gram(shifted).take(np.arange(64)[None]))
        assert batched[0] == pytest.approx(matrix_entropy(H)[0], rel=1e-8)


def test_token_at_the_mean_has_no_direction():
    H = np.concatenate([np.eye(8), -np.eye(8), np.zeros((1, 8))]) + 5
    value = entropy(H, "center+row")
    assert value == pytest.approx(np.log(8), abs=1e-12)
    assert entropy_from_gram(gram(H), scale="none")[0] == pytest.approx(value, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(3, 24),
    st.integers(2, 24),
    st.sampled_from(VARIANTS),
    st.floats(1e-8, 1e8),
)
def test_entropy_invariants(seed, n, d, normalise, scale):
    rng = RNG(seed)
    H = rng.normal(size=(n, d)) @ np.diag(rng.random(d) + 0.05)
    value = entropy(H, normalise)
    q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    for same in (H @ q, rng.permutation(H), H * scale):
        assert entropy(same, normalise) == pytest.approx(value, abs=1e-12)
    orders = [entropy(H, normalise, alpha=a) for a in (0.5, 1, 2, 4, np.inf)]
    assert all(a >= b - 1e-12 for a, b in zip(orders, orders[1:], strict=False))
    assert 0 <= value <= np.log(min(n - ("center" in normalise), d)) + 1e-12
    low = rng.normal(size=(n, 1)) @ rng.normal(size=(1, d))
    assert entropy(low, "raw") == pytest.approx(0, abs=1e-10)


# ---------------------------------------------------------------- bad input


BAD = {
    "nan": (np.where(np.eye(64, 8) > 0, np.nan, 1.0), "non-finite"),
    "inf": (np.where(np.eye(64, 8) > 0, np.inf, 1.0), "non-finite"),
    "overflow": (1e200 * RNG(0).normal(size=(64, 8)), "non-finite"),
    "one": (np.ones((1, 8)), "1 token(s)"),
    "same": (np.full((64, 8), 0.1), "no spread"),
    "rounding": (np.float32(1.1) + 6e-8 * RNG(0).random((64, 8)), "no spread"),
    "zero": (np.zeros((64, 8)), "no spread"),
}


@pytest.mark.parametrize("case", BAD)
def test_no_answer_is_nan_with_a_reason(case):
    H, reason = BAD[case]
    with no_warnings():
        value, note = matrix_entropy(H)
        assert np.isnan(value) and reason in note
        values, note = entropy_from_gram(gram(H).take(np.tile(np.arange(len(H)), (3, 1))))
        assert np.isnan(values).all() and values.shape == (3,) and reason in note
        assert np.isnan(depth_curvature(np.zeros_like(H), H)).all()
        if len(H) >= 4:
            cka, note = debiased_cka(H, RNG(1).normal(size=(len(H), 5)))
            assert np.isnan(cka) and note


def test_one_bad_subset_does_not_spoil_the_others():
    H = power_law(40)
    H[20:] = H[20]
    values, note = entropy_from_gram(gram(H).take(np.arange(40).reshape(2, 20)))
    assert np.isfinite(values).tolist() == [True, False] and note == "no spread between tokens"


@pytest.mark.parametrize(
    "call,named",
    [
        (lambda: matrix_entropy(np.ones((4, 3)), normalise="rown"), "normalise 'rown'"),
        (lambda: matrix_entropy(np.ones((4, 3)), scale="log"), "scale 'log'"),
        (lambda: matrix_entropy(np.ones((4, 3)), alpha=0), "alpha"),
        (lambda: gram(np.ones((0, 3))), r"\(0, 3\)"),
        (lambda: entropy_from_gram(gram(np.eye(4)), normalise="raw"), "center=False"),
        (lambda: sink_mask(np.ones(4)), "norms"),
    ],
)
def test_wrong_calls_are_named(call, named):
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_tensors_are_accepted():
    torch = pytest.importorskip("torch")
    H = power_law(32)
    assert matrix_entropy(torch.tensor(H, requires_grad=True))[0] == matrix_entropy(H)[0]
    half = matrix_entropy(torch.tensor(H).to(torch.bfloat16))[0]
    assert half == pytest.approx(matrix_entropy(H)[0], abs=1e-3)


# ---------------------------------------------------------------- curvature


def angles(path, **options):
    """Curvature over depth of a path (states, D) followed by one token."""
    v = np.diff(np.asarray(path, dtype=float), axis=0)
    return depth_curvature(v[:-1], v[1:], **options)


def ngon(n, turns=1):
    t = 2 * np.pi * np.arange(n + 2) / n
    return np.stack([np.cos(t), np.sin(t)], 1)


def helix(r=2.0, c=0.5, step=0.3):
    t = step * np.arange(20)
    return np.stack([r * np.cos(t), r * np.sin(t), c * t], 1)


def test_straight_paths_do_not_turn():
    u = RNG(0).normal(size=50)
    line = np.linspace(0, 1, 12)[:, None] * u
    decay = 5 + (0.7 ** np.arange(12))[:, None] * u
    assert np.abs(angles(line)).max() < 1e-13
    assert np.abs(angles(decay)).max() < 1e-13


@pytest.mark.parametrize("n", [3, 4, 6, 12, 100])
def test_regular_polygon(n):
    assert angles(ngon(n)) == pytest.approx(2 * np.pi / n, abs=1e-12)


def test_helix():
    q = 4 * 4 * np.sin(0.15) ** 2
    known = np.arccos((q * np.cos(0.3) + 0.25 * 0.09) / (q + 0.25 * 0.09))
    assert known == pytest.approx(0.290913092082, abs=1e-12)
    assert angles(helix()) == pytest.approx(known, abs=1e-12)


def test_back_and_forth_is_pi():
    path = np.outer([0, 1, 0, 1, 0], RNG(0).normal(size=9))
    assert angles(path) == pytest.approx(np.pi, abs=1e-12)


def test_random_steps_positions_and_momentum():
    """Nulls of every figure: 90 degrees for random updates, 120 for random states."""
    rng, d, n = RNG(0), 4096, 200
    a, b, c = rng.normal(size=(3, n, d))
    steps = depth_curvature(a, b)
    assert steps.mean() == pytest.approx(np.pi / 2, abs=4 / np.sqrt(d * n))
    assert steps.std() == pytest.approx(1 / np.sqrt(d), rel=0.15)
    positions = depth_curvature(b - a, c - b)
    assert positions.mean() == pytest.approx(2 * np.pi / 3, abs=2e-3)
    assert np.arccos(-(1 - 0.0) / 2) == pytest.approx(2.09439, abs=1e-5)
    momentum = depth_curvature(a, 0.6 * a + 0.8 * b)
    assert momentum.mean() == pytest.approx(0.92730, abs=4e-3)
    phi = 0.7
    noise = np.sqrt(1 - phi**2)
    h1 = phi * a + noise * b
    h2 = phi * h1 + noise * c
    found = depth_curvature(h1 - a, h2 - h1).mean()
    assert found == pytest.approx(np.arccos(-(1 - phi) / 2), abs=4e-3)
    assert np.arccos(-(1 - phi) / 2) == pytest.approx(1.7214, abs=5e-5)


def test_repeated_state_is_nan_at_the_two_angles_that_touch_it():
    path = RNG(0).normal(size=(8, 5))
    path[4] = path[3]
    assert np.isnan(angles(path)).tolist() == [False, False, True, True, False, False]


def test_update_at_rounding_level_is_no_update():
    v = np.array([[1.0, 0.0], [1e-9, 0.0]])
    turned = v[:, ::-1]
    assert depth_curvature(v, turned) == pytest.approx(np.pi / 2)
    guarded = depth_curvature(v, turned, np.array([1e-8, 1e-8]))
    assert np.isnan(guarded).tolist() == [False, True]
    assert np.isnan(depth_curvature([[np.nan, 1]], [[1.0, 1]])).all()


@pytest.mark.parametrize("theta", [0, 1e-8, 1e-3, 1, np.pi - 1e-8, np.pi])
def test_small_and_large_angles_are_exact(theta):
    """arccos loses these: 2.6e-8 off at parallel in float64, 6e-4 in float32."""
    u = RNG(1).normal(size=(2, 64))
    a, b = np.linalg.qr(u.T)[0].T
    found = depth_curvature(a[None] * 3, (np.cos(theta) * a + np.sin(theta) * b)[None] * 1e-6)
    assert found[0] == pytest.approx(theta, abs=2e-15)


def test_single_precision_states_give_the_angle_of_those_states():
    a, b = RNG(0).normal(size=(2, 64, 512)).astype("f4")
    assert depth_curvature(a, 2 * a).max() < 1e-15
    assert depth_curvature(a, b) == pytest.approx(depth_curvature(a.astype("f8"), b.astype("f8")))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_angle_invariants(seed, s, t):
    rng = RNG(seed)
    u, v = rng.normal(size=(2, 5, 7))
    theta = depth_curvature(u, v)
    assert ((theta >= 0) & (theta <= np.pi)).all()
    assert depth_curvature(s * v, t * u) == pytest.approx(theta, abs=1e-12)
    assert depth_curvature(u, -v) == pytest.approx(np.pi - theta, abs=1e-12)
    cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
    assert np.cos(theta) == pytest.approx(cosine, abs=1e-12)


def test_update_ratio():
    v, h = np.array([[3.0, 4], [0, 0], [1, 1]]), np.array([[0.0, 10], [1, 0], [0, 0]])
    assert update_ratio(v, h) == pytest.approx([0.5, 0, np.nan], nan_ok=True)


# ---------------------------------------------------------------- CKA


def test_cka_of_the_same_geometry_is_one():
    X = power_law(64, 100)
    q = np.linalg.qr(RNG(3).normal(size=(100, 100)))[0]
    for Y in (X, X @ q, 1e-3 * X + 7, np.pad(X, ((0, 0), (0, 9)))):
        for debiased in (True, False):
            assert debiased_cka(X, Y, debiased=debiased)[0] == pytest.approx(1, abs=1e-9)


def test_cka_of_independent_states_needs_the_debiased_form():
    """Plain linear CKA of independent gaussians, D = 4096: .984 at N = 64, .876 at N = 576."""
    for n, plain in ((64, 0.984), (576, 0.876)):
        X, Y = RNG(0).normal(size=(2, n, 4096))
        assert debiased_cka(X, Y, debiased=False)[0] == pytest.approx(plain, abs=2e-3)
        value, note = debiased_cka(X, Y)
        assert abs(value) < 5 / n and note == ""


def test_hsic_against_its_definition_by_sums_over_distinct_indices():
    """HSIC_1 is the U-statistic over 4 distinct indices (Song et al. 2012, theorem 3)."""
    from itertools import permutations

    X, Y = RNG(0).normal(size=(2, 6, 3))
    Y = Y + X

    def hsic(K, L):
        quads = permutations(range(6), 4)
        terms = [K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in quads]
        return np.mean(terms)

    K, L = X @ X.T, Y @ Y.T
    known = hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))
    assert debiased_cka(X, Y)[0] == pytest.approx(known, rel=1e-9)


def test_cka_shared_part_is_found_at_any_n():
    rng = RNG(0)
    values = []
    for n in (64, 256):
        S, A, B = rng.normal(size=(3, n, 2000))
        values.append(debiased_cka(S + A, S + B)[0])
    assert values == pytest.approx([0.25, 0.25], abs=0.05)  # (shared / total variance)^2


def test_cka_says_why_not():
    value, note = debiased_cka(np.eye(30), RNG(0).normal(size=(30, 8)))
    assert np.isnan(value) and note == "self-similarity is not positive"


# ---------------------------------------------------------------- sinks


def test_sink_anywhere_in_depth_is_a_sink_everywhere():
    norms = np.ones((5, 8)) * np.arange(1, 6)[:, None]
    norms[3, 2] = 10.01 * 4
    norms[1, 6] = 9.99 * 2
    assert np.flatnonzero(sink_mask(norms)).tolist() == [2]
    assert np.flatnonzero(sink_mask(norms, factor=9)).tolist() == [2, 6]


def test_sink_mask_leaves_broken_tokens_to_be_reported():
    norms = np.ones((3, 8))
    norms[1, 4], norms[2, 5] = np.nan, np.inf
    assert not sink_mask(norms).any()
    assert not sink_mask(np.zeros((3, 8))).any()
