"""Tables like ``truncation_sweep``'s in which reading and processing end at known depths (C0)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from calibration.truncated import GUESS, LAYERS, needs
from visdepth_utils.measure.truncation import FROZEN_OTHER

__all__ = ["frozen_tables"]

PARTS = {"mcq": 1, "vqa": 1, "chart": 1, "caption": 5}
"""What is scored of an answer: a caption has five objects."""


def frozen_tables(
    processes: float | Mapping[str, float],
    reads: float | Mapping[str, float],
    *,
    n: int = 96,
    accuracy: float = 0.95,
    guess: float | None = None,
    other: float | None = None,
    harmless: tuple[str, ...] = (),
    height: float = 0.9,
    frozen_height: float = 0.9,
    spread: float = 0.3,
    questions: int = 1,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Answers that are lost with a hazard by depth, when image tokens are frozen or removed.

    Args:
        processes: Share of the depth below which freezing does harm, a number or task -> number; 0
            for none at any depth.
        reads: The same for removing.
        n: Images.
        accuracy: Of the whole model.
        guess: Score without a picture, of all tasks; None for GUESS.
        other: Score with another picture; None for that of guessing.
        harmless: Control modes whose states do as well as the own ones.
        height: Share of answers that are lost where removing does harm.
        frozen_height: The same for freezing.
        spread: Of the images' hazards, on the log scale.
        questions: Per image and task, all with the hazard of their image.
        seed: Of all draws.

    Returns:
        ``truncation_sweep``'s columns that the rule reads, and {"conditions"}.
    """
    rng = np.random.default_rng(seed)
    level = np.repeat(np.exp(rng.normal(0, spread, n)), questions)
    rows = n * questions
    sweep, conditions = [], []
    for task, parts in PARTS.items():
        chance = GUESS[task] if guess is None else guess
        p, r = (x[task] if isinstance(x, Mapping) else x for x in (processes, reads))
        gone = needs(r, height)
        hazards = {"remove": gone, "freeze": needs(p, frozen_height) if p else np.zeros(LAYERS + 1)}
        hazards |= {mode: gone for mode in FROZEN_OTHER if mode not in harmless}
        hazards |= {mode: hazards["freeze"] for mode in harmless}
        able = rng.random((rows, parts)) < accuracy
        names = [f"{'c' if task == 'chart' else 'i'}{i // questions}" for i in range(rows)]
        samples = [f"{task}-{i}" for i in range(rows)]
        for mode, hazard in hazards.items():
            depths = range(LAYERS + 1) if mode not in FROZEN_OTHER else range(LAYERS // 3 + 1)
            for depth in depths:
                lost = rng.random((rows, parts)) < np.clip(hazard[depth] * level, 0, 1)[:, None]
                right = np.where(lost, rng.random((rows, parts)) < chance, able).mean(1)
                frame = {"sample": samples, "image": names, "task": task, "mode": mode}
                scores = {"depth": depth, "correct": right, "chrf_full": right}
                sweep.append(pd.DataFrame(frame | scores))
        for condition, hit in (("blind", chance), ("other", chance if other is None else other)):
            score = (rng.random((rows, parts)) < hit).mean(1)
            frame = {"sample": samples, "image": names, "task": task}
            conditions.append(pd.DataFrame(frame | {"condition": condition, "score": score}))
    return pd.concat(sweep, ignore_index=True), {"conditions": pd.concat(conditions)}
