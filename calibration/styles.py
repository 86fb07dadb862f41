"""Tables like ``truncation_sweep``'s of several styles whose retention is known (C7)."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

__all__ = ["DEPTHS", "OWN", "early", "even", "late", "styles_tables"]

DEPTHS = np.arange(9)
OWN = {
    "blind": {"direct": 0.48, "short": 0.52, "long": 0.41},
    "full": {"direct": 0.75, "short": 0.83, "long": 0.93},
    "other": {"direct": 0.42, "short": 0.44, "long": 0.44},
}
"""Scores of minivlm/base without a picture, with its own, and with another one."""


def styles_tables(
    kept: Mapping[str, Callable[[float], float]],
    full: Mapping[str, float] | None = None,
    *,
    n: int = 96,
    blind: float | Mapping[str, float] = 0.1,
    other: float | Mapping[str, float] = 0.03,
    seed: int = 0,
    mode: str = "remove",
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Right answers with probability blind + kept(d) * (full - blind), each question by itself.

    Args:
        kept: Style -> share of the gain that is kept, by depth from 0 to 1.
        full: Style -> accuracy of the whole model.
        n: Questions, each about an image of its own.
        blind: Accuracy without a picture, of all styles or by style.
        other: Accuracy with another one, likewise.
        seed: Of all draws.
        mode: Of the truncation.

    Returns:
        ``truncation_sweep``'s columns that the rule reads, and ``{"conditions": ...}``.
    """
    rng = np.random.default_rng(seed)
    full = full or {"direct": 0.8, "short": 0.9, "long": 1.0}
    rows, conditions = [], []
    for style, curve in kept.items():
        floor, strange = (x[style] if isinstance(x, Mapping) else x for x in (blind, other))
        draws = rng.random((n, 3))
        own = pd.DataFrame({"image": [f"i{i}" for i in range(n)], "task": "reason", "style": style})
        own.insert(0, "sample", [f"s{i}-{style}" for i in range(n)])
        right = [floor + curve(d / DEPTHS[-1]) * (full[style] - floor) for d in DEPTHS]
        wide = own.join(pd.DataFrame(draws[:, :1] < right, columns=DEPTHS).astype(float))
        long = wide.melt(list(own), var_name="depth", value_name="correct")
        long["token_layers"] = 10.0 * long["depth"].astype(int) + (50 if style == "long" else 0)
        rows.append(long.assign(mode=mode, depth=long["depth"].astype(int)))
        for place, (name, p) in enumerate((("blind", floor), ("other", strange)), 1):
            score = (draws[:, place] < p).astype(float)
            conditions.append(own.assign(condition=name, score=score))
    return pd.concat(rows, ignore_index=True), {"conditions": pd.concat(conditions)}


def early(z: float) -> float:
    """Most is kept at half the depth."""
    return min(1.0, 2 * z)


def late(z: float) -> float:
    """Nothing is kept before half the depth."""
    return max(0.0, 2 * z - 1)


def even(z: float) -> float:
    """As much is kept as there is depth."""
    return z
