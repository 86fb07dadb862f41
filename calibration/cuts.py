"""Answers by depth, counted costs and a clock whose truth is known (C8)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

__all__ = ["DEPTHS", "LINEAR", "SLIGHT", "clock", "costs", "cut_tables"]

DEPTHS = np.arange(9)
LINEAR = tuple(0.1 + 0.9 * DEPTHS / DEPTHS[-1])
SLIGHT = tuple(1 - 0.02 * (DEPTHS[-1] - DEPTHS))


def cut_tables(
    keeps_from: Mapping[str, int],
    *,
    n: int = 200,
    blind: float = 0.2,
    other: float = 0.2,
    loss: float = 0.0,
    full: float = 1.0,
    shares: Sequence[float] = LINEAR,
    noise: float = 0.1,
    mode: str = "remove",
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Shallower cuts than a task's own answer as without the picture; all cuts lose a share.

    Args:
        keeps_from: Task -> depth from which on its answers are those of the whole model.
        n: Pictures, a question of each task about each.
        blind: Share right without a picture.
        other: Share right with another one.
        loss: Share of answers that every cut loses, at random.
        full: Share that the whole model sees.
        shares: Of the whole model's FLOPs and time, by depth.
        noise: Of each time, as a share of it.
        mode: Of the truncation.
        seed: Of all draws.

    Returns:
        ``truncation_sweep``'s columns that the rule reads, and its three controls.
    """
    rng = np.random.default_rng(seed)
    sweeps, conditions = [], []
    for task, first in keeps_from.items():
        guess, knows, lost, lucky = (rng.random(n) < p for p in (blind, full, loss, other))
        cut = DEPTHS[:-1]
        kept = knows[:, None] & (cut >= first) & ~lost[:, None]
        sees = np.column_stack([kept, knows & (first <= DEPTHS[-1])])
        names = {"sample": [f"{task}{i}" for i in range(n)], "image": [f"i{i}" for i in range(n)]}
        own = pd.DataFrame(names | {"task": task})
        wide = pd.DataFrame((sees | guess[:, None]).astype(float), columns=DEPTHS)
        long = own.join(wide).melt([*names, "task"], var_name="depth", value_name="correct")
        sweeps.append(long.assign(mode=mode, depth=long["depth"].astype(int)))
        for name, right in (("blind", guess), ("other", lucky)):
            conditions.append(own.assign(condition=name, score=right.astype(float)))
    controls = {"costs": costs(shares), "times": clock(shares, noise=noise, seed=seed)}
    controls["conditions"] = pd.concat(conditions, ignore_index=True)
    return pd.concat(sweeps, ignore_index=True), controls


def costs(
    prefill: Sequence[float] = LINEAR,
    cache: Sequence[float] = LINEAR,
    image_tokens: int = 576,
) -> pd.DataFrame:
    """Counted costs of a decoder with these shares of the whole model's FLOPs and bytes."""
    table = pd.DataFrame({"depth": DEPTHS, "prefill_ratio": prefill, "kv_ratio": cache})
    return table.assign(image_tokens=image_tokens)


def clock(
    shares: Sequence[float] = LINEAR,
    *,
    repeats: int = 9,
    again: float = 1.0,
    noise: float = 0.02,
    seed: int = 0,
    image_tokens: int = 576,
) -> pd.DataFrame:
    """Times of a decoder whose prefill takes these shares; the cache shrinks as the depth does."""
    rng, rows = np.random.default_rng(seed), []
    last = len(shares) - 1
    for r in range(repeats):
        for d, share in [*enumerate(shares), (last, None)]:
            seconds = (again if share is None else share) * (1 + noise * rng.standard_normal())
            row = {"repetition": r, "depth": d, "again": share is None, "prefill_s": seconds}
            rows.append(row | {"decode_s": 1.0, "kv_bytes": 10 + 90 * d})
    return pd.DataFrame(rows).assign(decoder="own", image_tokens=image_tokens, other_tokens=75)
