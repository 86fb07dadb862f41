"""Tables like ``substitution_grid``'s whose losses and divergences are known (C3)."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

__all__ = ["LAYERS", "NOT_AT_ALL", "SAME", "always", "grid_table", "up_to"]

Effect = Callable[[int], tuple[float, float]]
"""Gap between the layers -> (interchange index, share of right answers lost)."""

LAYERS = (1, 3, 5, 7, 9, 11)  # 12 layers, every second one, counted back from the last
KINDS = (("image", ""), ("text", ""), ("image", "noise"))


def always(index: float, loss: float) -> Effect:
    """The same interchange index and loss at every gap."""
    return lambda gap: (index, loss)


def up_to(gap_max: int, near: tuple[float, float], far: tuple[float, float]) -> Effect:
    """One index and loss up to a gap, others beyond it."""
    return lambda gap: near if gap <= gap_max else far


SAME, NOT_AT_ALL = always(0.97, 0.0), always(0.1, 0.6)
TEXT = {"text": lambda gap: (0.3 - 0.1 * gap, 0.5)}
NOISE = {"noise": always(0.5, 0.3)}


def grid_table(
    image: Effect = SAME,
    *,
    text: Effect | None = TEXT["text"],
    noise: Effect | None = NOISE["noise"],
    n: int = 100,
    accuracy: float = 0.95,
    other: float = 0.2,
    unread: Sequence[int] = (11,),
    spread: float = 0.3,
    concentrated: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """A table like substitution_grid's, image and text; a loss falls on pairs or whole images.

    Args:
        image: Gap -> interchange index and share of right answers lost.
        text: The same of text states; None: not measured.
        noise: The same of noise.
        n: Images.
        accuracy: Of the unmodified model.
        other: Of the model with another picture.
        unread: Layers at which nobody reads the image.
        spread: Of the images' divergences, on the log scale.
        concentrated: All losses fall on the same images.
        seed: Of all draws.

    Returns:
        The columns of ``substitution_grid`` that the rule reads.
    """
    rng = np.random.default_rng(seed)
    plain = rng.random(n) < accuracy
    guess = rng.random(n) < other
    level = np.exp(rng.normal(0, spread, n))
    unlucky = rng.random(n)
    parts = []

    def add(
        modality: str,
        source_layer: int,
        layer: int,
        control: str,
        kl: np.ndarray,
        correct: np.ndarray,
    ) -> None:
        rows = {
            "modality": modality,
            "source_layer": source_layer,
            "layer": layer,
            "control": control,
        }
        rows |= {"kl": kl, "correct": correct.astype(float), "rescaled": False}
        names = {"sample": [f"s{i}" for i in range(n)], "image": [f"i{i}" for i in range(n)]}
        parts.append(pd.DataFrame(names | rows))

    for layer in LAYERS:
        read = layer not in unread
        strange = (3.0 if read else 0.002) * level * np.exp(rng.normal(0, spread, n))
        for modality in ("image", "text"):
            add(modality, layer, layer, "", np.zeros(n), plain)
        add("image", layer, layer, "other image", strange, guess if read else plain)
        for source_layer in LAYERS:
            if source_layer == layer:
                continue
            for (modality, control), shape in zip(KINDS, (image, text, noise), strict=True):
                if shape is None:
                    continue
                index, loss = shape(abs(source_layer - layer))
                size = 3.0 if read or modality == "text" else 0.002
                kl = (1 - index) * size * level * np.exp(rng.normal(0, spread, n))
                lucky = unlucky if concentrated else rng.random(n)
                lost = lucky < (loss if read or modality == "text" else 0)
                add(modality, source_layer, layer, control, kl, plain & ~lost)
    return pd.concat(parts, ignore_index=True)
