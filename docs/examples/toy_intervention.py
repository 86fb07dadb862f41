"""An intervention of one's own: image states shrink, going into every layer from d on."""

import contextlib

from visdepth_utils.measure.interventions import edited


@contextlib.contextmanager
def shrunk(vlm, enc, depth, factor=0.5):
    """Inside the block the batch ``enc`` runs with image states times ``factor``."""

    def edit(layer, hidden, kwargs):
        if layer < depth or hidden.shape[1] != enc.is_image.shape[1]:  # a generated token
            return hidden
        return hidden.where(~enc.is_image[..., None], hidden * factor)

    with edited(vlm, edit):
        yield
