"""Tables like ``recovery_sweep``'s whose recovered shares are known (C6)."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

__all__ = ["ENDED", "FALLING", "LAYERS", "TRAININGS", "curve_of", "recovery_table"]

LAYERS, CUT = 12, 4
FULL, LOST = 0.95, 0.2
TRAININGS = tuple((rate, seed) for rate in (1e-3, 2e-3) for seed in (0, 1))
"""Rate and seed of the trainings that claims.yaml registers."""


def curve_of(speed: float, floor: float = 0.1, start: float = 0.5) -> str:
    """A validation loss that nears its floor exponentially, as the column ``curve`` keeps it."""
    spent = np.linspace(0, 1, 21)
    loss = floor + (start - floor) * np.exp(-speed * spent)
    return json.dumps([[10 * k, spent[k], round(loss[k], 5)] for k in range(21)])


ENDED, FALLING = curve_of(8.0), curve_of(1.0)
"""A training that has converged, and one that was stopped long before."""


def recovery_table(
    shares: Mapping[str, float],
    *,
    shuffled: float | None = 0.0,
    n: int = 96,
    cut: int = CUT,
    full: float = FULL,
    same_images: bool = False,
    trainings: Sequence[tuple[float, int]] = TRAININGS[:1],
    spread: float = 0.0,
    alike: float = 1.0,
    curves: Mapping[str, str] | str = ENDED,
    seed: int = 0,
) -> pd.DataFrame:
    """Score of a state is a coin with probability LOST + share * (full - LOST), by image.

    Args:
        shares: Task -> recovered share, the mean over all trainings that could be made.
        shuffled: That of the control; None where it was not trained.
        n: Images per task.
        cut: Where images are cut.
        full: Score of the whole model.
        same_images: Whether tasks ask about the same images.
        trainings: Rate and seed of each.
        spread: Standard deviation of the share over trainings.
        alike: Chance that a state throws an image's own coin, which all states share.
        curves: Validation loss of every training, or of each state.
        seed: Of the draws.

    Returns:
        The table.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for task, share in shares.items():
        names = [f"{task}{i}" for i in range(n)]
        images = [f"i{i}" for i in range(n)] if same_images else names
        own = rng.random(n)
        states = [("full", 1.0, None), ("truncated", 0.0, None), ("full trained", 1.0, None)]
        for which in trainings:
            states.append(("recovered", share + spread * rng.standard_normal(), which))
            if shuffled is not None:
                states.append(("shuffled", shuffled + spread * rng.standard_normal(), which))
        for state, kept, which in states:
            coin = np.where(rng.random(n) < alike, own, rng.random(n))
            rate, number = which or (np.nan, np.nan)
            curve = curves if isinstance(curves, str) else curves[state] if which else ""
            row = {"task": task, "mode": "remove", "cut": cut, "state": state}
            row |= {"depth": LAYERS if state.startswith("full") else cut, "rate": rate}
            row |= {"seed": number, "steps": 200.0 if which else np.nan}
            row |= {"curve": curve if which else ""}
            score = (coin < LOST + kept * (full - LOST)).astype(float)
            parts.append(pd.DataFrame({"sample": names, "image": images, "score": score, **row}))
    return pd.concat(parts, ignore_index=True)
