"""When a curve settles, and bounds against margins: the parts all rules are made of.

Curves of a known first layer, from which they stay within the margin, come back from 40 noisy
images.
"""

import numpy as np
import pandas as pd
import pytest

from visdepth_utils.claims import stabilisation as rule
from visdepth_utils.claims.bootstrap import Resampled, tail_range

LAYERS, MARGIN, EARLY = np.arange(28), 0.05, 9
CURVES = {  # noise-free curve, first layer from which it stays within the margin, its label
    "fast decay": (0.3 * np.exp(-LAYERS / 2), 4, rule.EARLY),
    "fast rise": (-0.3 * np.exp(-LAYERS / 2), 4, rule.RISES),
    "slow decay": (0.3 * np.exp(-LAYERS / 8), 13, rule.LATE),
    "linear drift": (-0.3 * LAYERS / 27, 23, rule.LATE),
    "late jump": (np.where(LAYERS < 24, 0.3, 0.0), 24, rule.LATE),
    "early and slow drift": (0.2 * np.exp(-LAYERS / 1.5) - 0.1 * LAYERS / 27, 14, rule.LATE),
    "oscillation": (0.1 * np.cos(2 * np.pi * LAYERS / 6), 26, rule.LATE),
    "flat": (0.0 * LAYERS, 0, rule.FLAT),
}


def simulated(name: str, seed: int, noise: float = 0.015) -> pd.DataFrame:
    """Forty images, each with an offset of its own, which no range may see."""
    rng = np.random.default_rng(seed)
    values = 0.1 * rng.normal(size=(40, 1)) + noise * rng.normal(size=(40, 28))
    return pd.DataFrame(CURVES[name][0] + values, columns=LAYERS)


def part(curve: pd.DataFrame, fall: bool = True, **changed: float) -> rule.Part:
    options = {"margin": MARGIN, "early": EARLY, "level": 0.95, "resamples": 400, "seed": 0}
    return rule.settling(curve, fall=fall, **{"relative": None, **options, **changed})


@pytest.mark.parametrize("name", CURVES)
def test_simulated_truths_are_found(name: str) -> None:
    curve, layer, label = CURVES[name]
    assert np.flatnonzero(tail_range(curve) <= MARGIN)[0] == layer
    parts = [part(simulated(name, seed)) for seed in range(20)]
    found = np.array([p.layer for p in parts])
    assert abs(np.median(found) - layer) <= 2
    assert (np.abs(found - layer) <= 2).mean() >= 0.9, found
    assert sum(p.label == label for p in parts) >= 19, [p.label for p in parts]
    for p in parts:
        assert abs(p.change - np.ptp(curve)) < 0.03
        assert p.left_lo <= p.left <= p.left_hi + 1e-3
        assert p.shares.shape == (400,)


def test_where_no_fall_is_claimed_a_rise_settles_as_well() -> None:
    for name in ("fast decay", "fast rise"):
        assert part(simulated(name, 1), fall=False).label == rule.EARLY


def test_a_flat_curve_shows_what_the_claim_says_but_is_no_change() -> None:
    flat = part(simulated("flat", 0), fall=False)
    assert (flat.label, flat.shows, flat.layer) == (rule.FLAT, True, 0)
    assert part(simulated("flat", 0), fall=True).shows is False  # it does not fall


def test_a_smaller_margin_is_reached_no_sooner() -> None:
    for name in CURVES:
        curve = simulated(name, 2)
        layers = [part(curve, margin=margin).layer for margin in (0.1, 0.05, 0.025)]
        assert layers == sorted(layers), name


def test_noise_that_hides_the_answer_is_said_to() -> None:
    curve = simulated("early and slow drift", 0, noise=0.4)
    assert part(curve).label == rule.UNCLEAR
    assert part(curve).shows is None


def test_first_small_step_is_no_sign_of_having_settled() -> None:
    for name in ("linear drift", "late jump"):
        curve, layer, _ = CURVES[name]
        steps = np.abs(np.diff(curve + 1)) / (curve[:-1] + 1)
        assert np.argmax(steps < 0.05) == 0  # "first step below 5%" calls both settled at once
        assert part(simulated(name, 3)).layer >= layer - 2


def test_numbers_of_layers_are_those_of_the_columns() -> None:
    whole = simulated("fast decay", 0)
    found = part(whole.loc[:, 1:])
    plain = whole.loc[:, 1:].set_axis(range(27), axis=1)
    assert found.layer == part(plain, early=EARLY - 1).layer + 1


def test_the_early_share_is_that_of_the_change() -> None:
    fast, late = part(simulated("fast decay", 0)), part(simulated("late jump", 0))
    assert fast.share == pytest.approx(1 - np.exp(-9 / 2), abs=0.08)
    assert late.share < 0.1
    effect, draws = rule.weakest({"a": fast, "b": late})
    assert effect == late.share
    made, (lo, hi) = rule.made_early({"a": fast, "b": late}, 0.95)
    assert made == pytest.approx((fast.made + late.made) / 2)
    assert 0 <= lo <= made <= hi <= 1
    assert rule.made_early({"a": fast, "b": rule.too_small(0.1, 400)}, 0.95)[0] == fast.made
    gap = fast.shares - late.shares  # under the same resamples of images
    assert np.quantile(gap, 0.025) > 0.5


def test_both_margins_are_exact_without_noise() -> None:
    """A change of 10, of which 2 are left: above a margin of 1, within a share of 0.2 or more."""
    curve = pd.DataFrame([[10.0, 2.0, 2.0, 1.0, 0.0]] * 40, index=range(40))

    def answers(relative: float | None) -> tuple:
        found = part(curve, margin=1.0, early=1, relative=relative)
        return found.within_margin, found.within_share, found.label, found.layer

    assert answers(None) == (False, None, rule.LATE, 3)
    assert answers(0.19) == (False, False, rule.LATE, 3)
    assert answers(0.2) == (False, True, rule.EARLY, 1)
    found = part(curve, margin=1.0, early=1, relative=0.2)
    assert found.made == pytest.approx(0.8)
    assert (found.made_low == found.made).all() and (found.made_high == found.made).all()
    flat = part(curve * 0 + 3, margin=1.0, early=1, relative=0.2)
    assert (flat.label, flat.made) == (rule.FLAT, 0)  # no change was made early


def bounded(values: np.ndarray, images: list | range | None = None):
    """Bounds of a mean; equal names are one image."""
    table = pd.DataFrame({"loss": values}, index=images if images is not None else None)
    common = {"resamples": 2000, "seed": 0, "level": 0.95}
    return Resampled.of(table, common).bounded(lambda means: means["loss"])


def test_a_margin_is_held_against_the_bound_and_not_the_mean() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(0.01, 0.05, 200)
    found = bounded(small)
    assert found.below(0.03)
    assert small.mean() < found.high < 0.03
    error = 1.645 * small.std() / np.sqrt(200)
    assert found.high == pytest.approx(small.mean() + error, abs=1e-3)
    noisy = rng.normal(0.01, 0.5, 200)
    noisy += 0.01 - noisy.mean()
    assert bounded(noisy).below(0.03) is None  # the same mean, and no answer
    assert bounded(small + 0.05).below(0.03) is False
    assert bounded(small + 0.05).above(0.03) is True


def test_one_image_proves_nothing() -> None:
    one = bounded(np.zeros(5), ["a"] * 5)
    assert np.isnan(one.high)
    assert not one.below(0.03)


def test_a_range_within_the_margin_may_be_noise_alone() -> None:
    """The range that is left lies just below the margin, its bound above: settled is not shown."""
    found = part(simulated("early and slow drift", 0), margin=0.07)
    assert found.left < found.margin < found.left_hi
    assert found.shows is None
