"""Tables like ``truncation_sweep``'s of several styles whose retention is known (C7)."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

__all__ = ["DEPTHS", "early", "even", "late", "styles_tables"]

DEPTHS = np.arange(9)


def styles_tables(
    kept: Mapping[str, Callable[[float], float]],
    full: Mapping[str, float] | None = None,
    *,
    n: int = 96,
    blind: float = 0.1,
    other: float = 0.03,
    seed: int = 0,
    mode: str = "remove",
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Right answers with probability blind + kept(d) * (full - blind), each question by itself.

    Args:
        kept: Style -> share of the gain that is kept, by depth from 0 to 1.
        full: Style -> accuracy of the whole model.
        n: Questions, each about an image of its own.
        blind: Accuracy without a picture.
        other: Accuracy with another one.
        seed: Of all draws.
        mode: Of the truncation.

    Returns:
        ``truncation_sweep``'s columns that the rule reads, and ``{"conditions": ...}``.
    """
    rng = np.random.default_rng(seed)
    full = full or {"direct": 0.8, "short": 0.9, "long": 1.0}
    rows, conditions = [], []
    for style, curve in kept.items():
        for i in range(n):
            draw = rng.random()
            common = {"sample": f"s{i}-{style}", "image": f"i{i}", "task": "reason"}
            for d in DEPTHS:
                p = blind + curve(d / DEPTHS[-1]) * (full[style] - blind)
                row = {"style": style, "mode": mode, "depth": d, "correct": float(draw < p)}
                rows.append(
                    common | row | {"token_layers": 10.0 * d + (50 if style == "long" else 0)}
                )
            for name, p in (("blind", blind), ("other", other)):
                row = {"style": style, "condition": name, "score": float(rng.random() < p)}
                conditions.append(common | row)
    return pd.DataFrame(rows), {"conditions": pd.DataFrame(conditions)}


def early(z: float) -> float:
    """Most is kept at half the depth."""
    return min(1.0, 2 * z)


def late(z: float) -> float:
    """Nothing is kept before half the depth."""
    return max(0.0, 2 * z - 1)


def even(z: float) -> float:
    """As much is kept as there is depth."""
    return z
