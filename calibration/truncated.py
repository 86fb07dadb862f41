"""Tables like ``truncation_sweep``'s whose hazards by depth are known (C4)."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

__all__ = ["ALIKE", "DEPENDS", "LAYERS", "LENGTH", "REVERSED", "Z", "needs", "sweep_tables"]

LAYERS = 12
GUESS = {"mcq": 0.25, "vqa": 0.1, "chart": 0.1, "caption": 0.05}  # right without a picture
Z = np.arange(LAYERS + 1) / LAYERS
TOKENS = {"mcq": 1, "vqa": 2, "chart": 2, "caption": 30}


def needs(share: float, height: float = 0.9) -> np.ndarray:
    """A token flips while fewer layers than this share of the depth see the image."""
    return height / (1 + np.exp(25 * (Z - share))) * (Z < 1)


EARLY, LATE, MIDDLE = needs(0.2), needs(0.75), needs(0.4)
FRAGILE = needs(0.6, 0.12)  # little per token, much over thirty of them


def sweep_tables(
    hazards: Mapping[str, np.ndarray],
    *,
    n: int = 48,
    words: int = 6,
    guess: float | None = None,
    accuracy: float = 0.95,
    harm: float | Mapping[str, float] = 3.0,
    other: float | None = None,
    seed: int = 0,
    spread: float = 0.3,
    function_words: float = 0.0,
    tails: float = 0.0,
    questions: int = 1,
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Answers whose tokens flip with a hazard by depth; captions are phrases of some tokens.

    Args:
        hazards: Task -> probability at each depth that a token flips.
        n: Images.
        words: Tokens of a phrase of a caption.
        guess: Score without a picture, of all tasks; None for GUESS.
        accuracy: Of the whole model.
        harm: Nats per unit of hazard, a number or task -> number.
        other: Score with another picture; None for that of guessing.
        seed: Of all draws.
        spread: Of the images' hazards, on the log scale.
        function_words: Share of a caption's tokens that no image is needed for.
        tails: Of what a token can lose, on the log scale, beside an exponential spread.
        questions: Per image and task, all with the hazard of their image.

    Returns:
        ``truncation_sweep``'s columns that the rule reads, and {"conditions", "token_kl"}.
    """
    rng = np.random.default_rng(seed)
    guesses = GUESS if guess is None else dict.fromkeys(TOKENS, guess)
    level = np.repeat(np.exp(rng.normal(0, spread, n)), questions)[:, None]
    n = n * questions
    sweep, conditions, tokens = [], [], []
    for task, length in TOKENS.items():
        guess = guesses[task]
        names = [f"{'c' if task == 'chart' else 'i'}{i // questions}" for i in range(n)]
        hazard = hazards.get(task, hazards["vqa"])
        p = np.clip(hazard[None] * level, 0, 0.97)  # (image, depth)
        share = function_words if task == "caption" else 0.0
        needless = np.diff(np.floor(np.arange(length + 1) * share)) > 0
        flips = rng.random((n, LAYERS + 1, length)) < np.where(needless, 0, p[..., None])
        flips[:, -1] = False
        per = words if task == "caption" else length
        phrases = ~flips.reshape(n, LAYERS + 1, -1, per).any(-1)
        able = rng.random((n, 1, phrases.shape[-1])) < accuracy
        lucky = rng.random(phrases.shape) < guess
        score = np.where(phrases, able, lucky).mean(-1)
        scale = harm[task] if isinstance(harm, dict) else harm
        drawn = rng.exponential(1, flips.shape)
        able_to_lose = drawn[:, -1:]  # of each token, at all depths
        if tails:
            able_to_lose = able_to_lose * np.exp(rng.normal(0, tails, able_to_lose.shape))
        kl = scale * p[..., None] * able_to_lose * (0.5 + 0.5 * drawn)
        kl = np.where(needless, 0.02 * drawn, kl)
        kl[:, -1] = 0
        image, depth = np.indices(score.shape)
        sweep.append(
            pd.DataFrame(
                {
                    "sample": [f"{task}-{i}" for i in image.ravel()],
                    "image": [names[i] for i in image.ravel()],
                    "task": task,
                    "mode": "remove",
                    "depth": depth.ravel(),
                    "correct": score.ravel(),
                    "chrf_full": score.ravel(),
                    "same": ~flips.any(-1).ravel(),
                }
            )
        )
        image, depth, token = np.indices(flips.shape)
        tokens.append(
            pd.DataFrame(
                {
                    "sample": [f"{task}-{i}" for i in image.ravel()],
                    "image": [names[i] for i in image.ravel()],
                    "task": task,
                    "mode": "remove",
                    "depth": depth.ravel(),
                    "token": token.ravel(),
                    "kl": kl.ravel(),
                    "same_top1": ~flips.ravel(),
                }
            )
        )
        for condition in ("full", "blind", "other"):
            chance = {"full": accuracy, "blind": guess, "other": guess if other is None else other}
            hits = rng.random((n, phrases.shape[-1])) < chance[condition]
            conditions.append(
                pd.DataFrame(
                    {
                        "sample": [f"{task}-{i}" for i in range(n)],
                        "image": names,
                        "task": task,
                        "condition": condition,
                        "score": hits.mean(-1),
                    }
                )
            )
    tables = {"conditions": pd.concat(conditions), "token_kl": pd.concat(tokens)}
    return pd.concat(sweep, ignore_index=True), tables


DEPENDS = {"mcq": EARLY, "vqa": EARLY, "caption": LATE}
ALIKE = {"mcq": MIDDLE, "vqa": MIDDLE, "caption": MIDDLE}
REVERSED = {"mcq": LATE, "vqa": LATE, "caption": EARLY}
LENGTH = {"mcq": FRAGILE, "vqa": FRAGILE, "caption": FRAGILE}
