"""Text decoders with random weights, at the sizes of real models.

Weights change neither time nor bytes: what a cut saves depends on the shape of the decoder and on
how many rows are image tokens. So a model whose weights are not at hand can be timed all the same.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from visdepth_utils.measure.costs import predicted_costs, shape_of
from visdepth_utils.models.families import FAMILIES
from visdepth_utils.models.reading import quiet
from visdepth_utils.models.vlm import VLM


def _size(kind: str, layers: int, width: int, heads: int, kv: int, inner: int, words: int) -> dict:
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    sizes |= {"num_key_value_heads": kv, "intermediate_size": inner, "vocab_size": words}
    return {"model_type": kind, **sizes, "max_position_embeddings": 32768}


SIZES: dict[str, dict[str, Any]] = {
    "reference": _size("llama", 6, 384, 6, 2, 1024, 4096),
    "Qwen2.5-VL-3B": _size("qwen2", 36, 2048, 16, 2, 11008, 151936) | {"tie_word_embeddings": True},
    "Qwen2.5-VL-7B": _size("qwen2", 28, 3584, 28, 4, 18944, 152064),
    "LLaVA-1.5-7B": _size("llama", 32, 4096, 32, 32, 11008, 32064),
}
"""Name -> text configuration. ``reference`` is no model of anybody's: as large as a CPU times in
seconds. The others have the sizes of the published decoders (Qwen's with plain rotary positions,
which cost the same).
"""


def text_config(name: str) -> PreTrainedConfig:
    """The configuration of one of ``SIZES``; ValueError for another name."""
    if name not in SIZES:
        raise ValueError(f"no sizes for {name!r}: there are {', '.join(SIZES)}")
    return AutoConfig.for_model(**SIZES[name])


def predicted_sizes(image_tokens: Sequence[int], other_tokens: int) -> pd.DataFrame:
    """What dropping the image at half of the depth would save on each of ``SIZES``.

    One row per decoder and count: ``decoder, image tokens``, and the shares of the whole model's
    cost that are left, ``prefill`` (FLOPs), ``decode`` (bytes read per token), ``kv``.
    """
    rows = []
    for name in SIZES:
        shape = shape_of(text_config(name))
        for count in image_tokens:
            half = predicted_costs(shape, count, other_tokens, [shape.layers // 2]).iloc[0]
            kinds = (("prefill", "prefill"), ("decode", "decode_bytes"), ("kv", "kv"))
            left = {kind: half[f"{column}_ratio"] for kind, column in kinds}
            rows.append({"decoder": name, "image tokens": count, **left})
    return pd.DataFrame(rows)


def random_decoder(
    name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> VLM:
    """A decoder of one of ``SIZES`` with random weights, in the form that ``timing`` takes.

    It has no processor and no vision tower: it can be timed, not asked. It is made on ``device``;
    nothing passes through main memory.
    """
    config = text_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    return VLM(
        model=materialised(model, device),
        processor=None,
        family=FAMILIES["llava"],
        image_token_id=-1,
        device=torch.device(device),
        dtype=dtype,
        name=f"{name} (random weights)",
        weights_hash="",
    )


def materialised(model: PreTrainedModel, device: str | torch.device, seed: int = 0) -> Any:
    """Give a model made on the meta device memory and random weights.

    It is in eval mode, without gradients; torch's global generators are left as they were.
    """
    model = model.to_empty(device=device)
    for module in model.modules():  # what was "initialised" without memory was not
        module._is_hf_initialized = False
    for value in (*model.parameters(), *model.buffers()):
        value._is_hf_initialized = False
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with quiet(), torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        model.init_weights()
    model.tie_weights()
    return model.eval().requires_grad_(False)
