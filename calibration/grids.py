"""Tables like ``substitution_grid``'s whose losses and divergences are known (C3)."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from visdepth_utils.claims.interchange import FAR_NOISE

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
FAR = {"far": always(0.3, 0.4)}


def grid_table(
    image: Effect = SAME,
    *,
    text: Effect | None = TEXT["text"],
    noise: Effect | None = NOISE["noise"],
    far: Effect | None = FAR["far"],
    n: int = 100,
    questions: int = 1,
    accuracy: float = 0.95,
    other: float = 0.2,
    unread: Sequence[int] = (11,),
    spread: float = 0.3,
    tails: float = 0.0,
    concentrated: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """A table like substitution_grid's, image and text; a loss falls on pairs or whole images.

    Args:
        image: Gap -> interchange index and share of right answers lost.
        text: The same of text states; None: not measured.
        noise: The same of noise of the same size.
        far: The same of noise as far as another image, at gap 0.
        n: Images.
        questions: Of each image, with its divergences and with its bad luck.
        accuracy: Of the unmodified model.
        other: Of the model with another picture.
        unread: Layers at which nobody reads the image.
        spread: Of the images' divergences, on the log scale.
        tails: The same of what substitution does alone, an image's pairs alike; mean as named.
        concentrated: All losses fall on the same images.
        seed: Of all draws.

    Returns:
        The columns of ``substitution_grid`` that the rule reads.
    """
    rng = np.random.default_rng(seed)
    states, image = image, np.repeat(np.arange(n), questions)
    size = len(image)
    plain = rng.random(size) < accuracy
    guess = rng.random(size) < other
    level = np.exp(rng.normal(0, spread, n))[image]
    unlucky = rng.random(n)[image]
    own = np.exp(rng.normal(0, tails, n) - tails**2 / 2)[image] if tails else 1.0
    names = {"sample": [f"s{i}" for i in range(size)], "image": [f"i{i}" for i in image]}
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
        parts.append(pd.DataFrame(names | rows))

    def put(shape: Effect | None, modality: str, source_layer: int, layer: int, control: str):
        if shape is None:
            return
        read = layer not in unread or modality == "text"
        index, loss = shape(abs(source_layer - layer))
        most = (3.0 if read else 0.002) * level * np.exp(rng.normal(0, spread, size))
        lucky = unlucky if concentrated else rng.random(size)
        kl = (1 - index) * most * (own if (modality, control) == ("image", "") else 1.0)
        add(modality, source_layer, layer, control, kl, plain & ~(lucky < (loss if read else 0)))

    for layer in LAYERS:
        read = layer not in unread
        strange = (3.0 if read else 0.002) * level * np.exp(rng.normal(0, spread, size))
        for modality in ("image", "text"):
            add(modality, layer, layer, "", np.zeros(size), plain)
        add("image", layer, layer, "other image", strange, guess if read else plain)
        put(far, "image", layer, layer, FAR_NOISE)
        for source_layer in LAYERS:
            if source_layer != layer:
                for kind, shape in zip(KINDS, (states, text, noise), strict=True):
                    put(shape, kind[0], source_layer, layer, kind[1])
    return pd.concat(parts, ignore_index=True)
