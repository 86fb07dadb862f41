"""Tables like ``reasoning_sweep``'s whose hazard per word is known (C5)."""

import numpy as np
import pandas as pd

from visdepth_utils.claims.c5 import CONTROLS

__all__ = ["DEPTHS", "chains_table"]

DEPTHS, LENGTH, ANSWERS, VOCABULARY = range(9), 30, 4, 40


def chains_table(
    hazard: float = 0.0,
    answer_hazard: float | None = None,
    *,
    cascades: bool = True,
    random: bool = False,
    n: int = 48,
    seed: int = 0,
    mode: str = "remove",
) -> pd.DataFrame:
    """Chains of random words in which each word flips with a hazard that falls with depth.

    With ``cascades`` all words behind the first flip are other ones too, the answer included; an
    answer that has its own hazard is not reached by that. ``random`` makes every cut output one
    about nothing. Under teacher forcing each token flips by itself.

    Args:
        hazard: Of a word of the chain at depth 0.
        answer_hazard: Of the answer; None: that of a word, and it follows the chain.
        cascades: See above.
        random: See above.
        n: Questions, each about an image of its own.
        seed: Of all draws.
        mode: Of the truncation.

    Returns:
        ``reasoning_sweep``'s columns that ``chains.compare`` and the rule read.
    """
    rng = np.random.default_rng(seed)
    other = answer_hazard is not None

    def perturbed(
        chain: np.ndarray, answer: int, h: float, h_answer: float
    ) -> tuple[np.ndarray, int]:
        flips = rng.random(LENGTH) < h
        if cascades and flips.any():
            flips[int(flips.argmax()) :] = True
        chain = np.where(flips, rng.integers(VOCABULARY, size=LENGTH), chain)
        reached = cascades and flips.any() and not other
        if reached or rng.random() < h_answer:
            answer = rng.integers(ANSWERS)
        return chain, answer

    rows = []
    for i in range(n):
        chain, answer = rng.integers(VOCABULARY, size=LENGTH), rng.integers(ANSWERS)
        conditions = [(d, "", hazard * (1 - d / max(DEPTHS))) for d in DEPTHS]
        conditions += [(max(DEPTHS), name, 0.0) for name in CONTROLS]
        for depth, control, h in conditions:
            h_answer = (answer_hazard or 0.0) * (1 - depth / max(DEPTHS)) if other else h
            said, end = perturbed(chain, answer, h, h_answer)
            if control == "another picture" or (random and not control and depth < max(DEPTHS)):
                said, end = rng.integers(VOCABULARY, size=LENGTH), rng.integers(ANSWERS)
            text = " ".join(f"w{word}" for word in said)
            forced = {
                "changed_chain": rng.binomial(LENGTH, h) / LENGTH,
                "changed_answer": float(rng.random() < h_answer),
            }
            if random and not control and depth < max(DEPTHS):
                forced = dict.fromkeys(forced, 0.9)
            row = {
                "sample": f"s{i}",
                "image": f"i{i}",
                "task": "reason",
                "kind": ("count", "spatial")[i % 2],
                "style": "long",
                "mode": mode,
                "depth": depth,
                "control": control,
                "output": f"{text} . so the answer is {end} .",
                "correct": 1.0,
                "kl_chain": h,
                "kl_answer": h_answer,
                "answer_kept": 1 - forced["changed_answer"],
            }
            rows.append(row | forced)
    return pd.DataFrame(rows)
