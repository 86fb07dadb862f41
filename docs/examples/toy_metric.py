"""A metric of one's own, layer by layer: the mean length of the image tokens' states."""

import pandas as pd

from visdepth_utils import capture


def mean_norm(vlm, task) -> pd.DataFrame:
    """One row per sample and layer: ``sample, image, modality, layer, metric, value``."""
    rows = []
    enc = vlm.encode(task.samples)

    def visit(layer, state):  # (B, S, D), what the layer receives
        norms = state.norm(dim=-1)
        for sample, own, mask in zip(task.samples, norms, enc.is_image, strict=True):
            rows.append(
                (sample.id, sample.image_id, "image", layer, "norm", float(own[mask].mean()))
            )

    capture(vlm, enc, visit)
    return pd.DataFrame(rows, columns=["sample", "image", "modality", "layer", "metric", "value"])
