"""The model's own ``generate``, called with settings that are all ours: the one place for it.

transformers fills what a given setting leaves open from the checkpoint's generation_config.json.
Nothing of that file is in force here except the ids that end an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from transformers import GenerationConfig

from visdepth_utils.models.parts import check_rope
from visdepth_utils.models.reading import quiet

if TYPE_CHECKING:
    from visdepth_utils.models.encoding import Encoded
    from visdepth_utils.models.vlm import VLM


@torch.no_grad()
def generated(vlm: VLM, enc: Encoded, max_new_tokens: int, **strategy: Any) -> torch.Tensor:
    """Continue B prompts, greedily unless ``strategy`` (of ``GenerationConfig``) says otherwise.

    Token ids (B, at most the budget), padded after the one that ends an answer.
    """
    check_rope(vlm, enc, max_new_tokens)
    plain = GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=vlm.tokenizer.pad_token_id,
        eos_token_id=stop_ids(vlm) or None,
        **strategy,
    )
    # With the model's own settings out of the way there is nothing to fill in from them.
    with quiet(), mock.patch.object(vlm.model, "generation_config", plain):
        # The class's: a checkpoint's custom_generate stands on the model itself.
        ids = type(vlm.model).generate(vlm.model, **enc.inputs, generation_config=plain)
    return ids[:, enc.inputs["input_ids"].shape[1] :]


def stop_ids(vlm: VLM) -> list[int]:
    """Ids that end an answer of this model."""
    stop = vlm.model.generation_config.eos_token_id
    stop = vlm.tokenizer.eos_token_id if stop is None else stop
    return list(stop) if isinstance(stop, list | tuple) else [] if stop is None else [stop]


def without_end(ids: Sequence[int], stop: Sequence[int]) -> tuple[list[int], int | None]:
    """The ids before the first that ends the answer, and that one; None where none does."""
    at = next((i for i, token in enumerate(ids) if token in stop), len(ids))
    return list(ids[:at]), ids[at] if at < len(ids) else None


def decode_answers(vlm: VLM, ids: Sequence[Sequence[int]]) -> list[str]:
    """Token ids of answers as texts: before the end, no special tokens; see ``VLM.thinking``."""
    stop = stop_ids(vlm)
    said = [without_end(row, stop)[0] for row in ids]
    texts = vlm.tokenizer.batch_decode(said, skip_special_tokens=True)
    return [vlm.thinking[0] + text.strip() for text in texts]
