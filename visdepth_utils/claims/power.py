"""How many images a claim needs on one model, simulated from that model's own answers.

Images of a finished run are drawn again with replacement, each with its own scores with the
picture, without it and with another one; what a cut leaves of the difference follows the effect
that ``power_at`` names. The claim's own rule judges every simulated table.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from visdepth_utils.claims.c7 import per_image, power_verdict
from visdepth_utils.claims.registry import claim_entry

__all__ = ["SIZES", "images_for", "power_curve", "power_record", "power_text"]

SIZES = (48, 96, 200, 400, 800, 1600, 3200)
RESAMPLES = 400
"""Of the bootstrap in every simulation, for time."""
ENOUGH = 0.97
"""Larger sizes are not tried once this share is supported."""


def power_curve(
    claim: str,
    table: pd.DataFrame,
    controls: dict[str, pd.DataFrame],
    *,
    sizes: Sequence[int] = SIZES,
    simulations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of simulated runs on so many images that support the claim at its ``power_at``.

    Args:
        claim: "C7".
        table: As for ``verdict``, of a finished run.
        controls: As for ``verdict``.
        sizes: Numbers of images, rising.
        simulations: For each.
        seed: Of all draws.

    Returns:
        Columns ``images, supported, refuted`` (shares; refuting a true effect is an error), up to
        the first size that supports nearly always.

    Raises:
        ValueError: The claim has no such simulation, or no image has a value in both styles.
    """
    if claim != "C7":
        raise ValueError(f"power is not available for {claim}: it can be had for C7")
    spec = copy.deepcopy(claim_entry(claim))
    spec["common"]["resamples"] = RESAMPLES
    own, _ = per_image(spec, table, controls)
    own = own.dropna()
    if own.empty:
        raise ValueError("no image has a value in both styles: give the tables of a finished run")
    exponent = spec["power_at"]["exponent"]
    shapes = {spec["styles"]["shorter"]: exponent, spec["styles"]["longer"]: 1 / exponent}
    depths = np.linspace(0, 1, table["depth"].nunique())
    rng, rows = np.random.default_rng(seed), []
    for n in sizes:
        said = [
            power_verdict(spec, _drawn(own, shapes, depths, n, rng)) for _ in range(simulations)
        ]
        share = {word: said.count(word) / simulations for word in ("supported", "not supported")}
        rows.append((n, share["supported"], share["not supported"]))
        if share["supported"] >= ENOUGH:
            break
    return pd.DataFrame(rows, columns=["images", "supported", "refuted"])


def _drawn(
    own: pd.DataFrame,
    shapes: dict[str, float],
    depths: np.ndarray,
    n: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """N images of a run, their scores over depth drawn anew: z ** exponent of the gain is kept.

    Where an answer is as right with the picture as without, its own ups and downs over depth stay.
    """
    out = own.iloc[rng.integers(0, len(own), n)].reset_index(drop=True)
    for style, exponent in shapes.items():
        sees = (rng.random((n, 1)) < depths**exponent).astype(float)
        kept = np.trapezoid(sees, depths, axis=1)
        full, floor, area = (out[f"{style} {name}"] for name in ("full", "floor", "area"))
        noise = (area - floor).where(full == floor)
        centre = (own[f"{style} area"] - own[f"{style} floor"])[
            own[f"{style} full"] == own[f"{style} floor"]
        ].mean()
        out[f"{style} area"] = floor + (full - floor) * kept + (noise - centre).fillna(0.0)
    return out


def images_for(curve: pd.DataFrame, power: float) -> int | None:
    """Images that support with this probability, between sizes by straight lines in log images.

    Args:
        curve: Of ``power_curve``.
        power: From 0 to 1.

    Returns:
        The number, rounded up to a ten; None where no size reaches it.
    """
    shares = np.maximum.accumulate(curve["supported"].to_numpy(float))
    if not shares.max() >= power:
        return None
    at = int(np.argmax(shares >= power))
    logs = np.log(curve["images"].to_numpy(float))
    if at:
        part = (power - shares[at - 1]) / (shares[at] - shares[at - 1])
        log = logs[at - 1] + part * (logs[at] - logs[at - 1])
    else:
        log = logs[0]
    return int(10 * np.ceil(np.exp(log) / 10 - 1e-9))


def power_text(claim: str, curve: pd.DataFrame, n: int) -> str:
    """One line: the power at n images, and how many give 80% and 90%.

    Args:
        claim: Identifier.
        curve: Of ``power_curve``.
        n: Images of a run.

    Returns:
        The line.
    """
    logs = np.log(curve["images"].to_numpy(float))
    own = float(np.interp(np.log(n), logs, curve["supported"]))
    most = int(curve["images"].max())
    needed = {p: images_for(curve, p) for p in (0.8, 0.9)}
    told = ", ".join(f"{k or f'more than {most}'} images for {p:.0%}" for p, k in needed.items())
    return f"{claim} at {n} images: {own:.0%} power; {told}"


def power_record(claim: str, curve: pd.DataFrame, model: str) -> dict[str, Any]:
    """What is kept beside a run.

    Args:
        claim: Identifier.
        curve: Of ``power_curve``.
        model: As the run's settings name it.

    Returns:
        Plain values: ``model, claim, curve``, and ``images`` for 80% and 90% (None: more than was
        tried).
    """
    needed = {f"{p:g}": images_for(curve, p) for p in (0.8, 0.9)}
    return {"model": model, "claim": claim, "images": needed, "curve": curve.to_dict("records")}
