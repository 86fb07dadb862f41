"""Tables like ``reasoning_sweep``'s whose hazard per word is known by depth (C5)."""

import numpy as np
import pandas as pd

from visdepth_utils.claims.c5 import CONTROLS

__all__ = ["DEPTHS", "chains_table", "needs"]

DEPTHS, LENGTH, ANSWERS, VOCABULARY = range(9), 30, 4, 40
Z = np.arange(len(DEPTHS)) / max(DEPTHS)
GUESS = (0.4, 0.3, 0.2, 0.1)  # of the answers; the first is what is said without an image


def needs(share: float, height: float = 0.95) -> np.ndarray:
    """A word is lost while fewer layers than this share of the depth see the image."""
    return height / (1 + np.exp(12 * (Z - share))) * (Z < 1)


def chains_table(
    chain: np.ndarray | None = None,
    answer: np.ndarray | None = None,
    *,
    cascades: bool = False,
    question_words: float = 0.0,
    template: bool = False,
    n: int = 48,
    seed: int = 0,
    mode: str = "remove",
) -> pd.DataFrame:
    """Chains of random words; each word that is lost becomes one that no image was needed for.

    Args:
        chain: Probability at each depth that a word of the chain is lost; None: never.
        answer: The same of the answer; None: it is lost with the last word of the chain.
        cascades: All words after the first lost one are lost too.
        question_words: Share of the words of a chain that repeat the question, and never change.
        template: Without an image always the same words and answer; else random ones.
        n: Questions, each about an image of its own.
        seed: Of all draws.
        mode: Of the truncation.

    Returns:
        ``reasoning_sweep``'s columns that ``chains.compare`` and the rule read, and ``question``.
    """
    rng = np.random.default_rng(seed)
    none = np.zeros(len(DEPTHS))
    chain = none if chain is None else chain
    fixed = np.diff(np.floor(np.arange(LENGTH + 1) * question_words)) > 0
    common = rng.integers(VOCABULARY, size=LENGTH)

    def anything() -> tuple[np.ndarray, int]:
        return rng.integers(VOCABULARY, size=LENGTH), int(rng.choice(ANSWERS, p=GUESS))

    rows = []
    for i in range(n):
        asked = np.array([f"q{word}" for word in rng.integers(VOCABULARY, size=LENGTH)])
        own, end = anything()
        conditions = [(d, "", d) for d in DEPTHS]
        conditions += [(max(DEPTHS), name, max(DEPTHS)) for name in CONTROLS]
        for depth, control, at in conditions:
            said, final = own, end
            blind = (common, 0) if template else anything()
            lost = (rng.random(LENGTH) < chain[at]) & ~fixed
            if cascades and lost.any():
                lost[int(lost.argmax()) :] = True
            missed = lost[~fixed][-1] if answer is None else rng.random() < answer[at]
            if control == "another picture":
                said, final = anything()
            else:
                said = np.where(lost, blind[0], own)
                final = blind[1] if missed else end
            text = " ".join(np.where(fixed, asked, [f"w{word}" for word in said]))
            changed = (rng.random(LENGTH) < chain[at]) & ~fixed
            p = chain[at] if answer is None else answer[at]
            forced = {"changed_chain": changed.mean(), "changed_answer": float(rng.random() < p)}
            row = {
                "sample": f"s{i}",
                "image": f"i{i}",
                "task": "reason",
                "kind": ("count", "spatial")[i % 2],
                "style": "long",
                "mode": mode,
                "depth": depth,
                "control": control,
                "question": " ".join(sorted(set(asked))),
                "output": f"{text} . so the answer is {final} .",
                "correct": 1.0,
                "kl_chain": chain[at],
                "kl_answer": p,
                "answer_kept": 1 - forced["changed_answer"],
            }
            rows.append(row | forced)
    return pd.DataFrame(rows)
