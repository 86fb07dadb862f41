"""What an answer costs, counted in token-layers: tokens times the layers that each passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from visdepth_utils.data.samples import Sample
    from visdepth_utils.models.vlm import VLM

__all__ = ["with_token_layers"]


def with_token_layers(vlm: VLM, sweep: pd.DataFrame, samples: Sequence[Sample]) -> pd.DataFrame:
    """Add what each answer of a truncation sweep would cost if image rows were really dropped.

    Image tokens pass d layers, all other tokens of the prompt and those generated pass all L::

        token_layers = image tokens x d + (other tokens + generated tokens) x L

    Attention's square term and the vision tower are left out.

    Args:
        vlm: The model.
        sweep: ``truncation_sweep``.
        samples: Its samples.

    Returns:
        The table with a column ``token_layers``.

    Raises:
        ValueError: If a row's sample is not among them.
    """
    counts = {}
    for sample in samples:
        enc = vlm.encode([sample])
        images = int(enc.is_image.sum())
        counts[sample.id] = (images, int(enc.inputs["attention_mask"].sum()) - images)
    if lacking := set(sweep["sample"]) - set(counts):
        raise ValueError(f"sample {min(lacking)!r} of the sweep is not among the samples given")
    images, others = (sweep["sample"].map({k: v[i] for k, v in counts.items()}) for i in (0, 1))
    cost = images * sweep["depth"] + (others + sweep["n_tokens"]) * vlm.n_layers
    return sweep.assign(token_layers=cost)
