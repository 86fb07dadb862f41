"""What an answer costs by depth, predicted from a decoder's configuration: FLOPs and KV cache.

The model, stated once. A multiply-add is 2 FLOPs. One token passing one layer costs its linear
maps: query and output D x (H h) each, key and value D x (G h) each, gate, up and down D x F each
(no gate where the family has none), with D the width, H and G the heads of queries and of keys, h
the size of a head and F the inner width. Attention of q queries over k keys costs 4 q k H h (scores
and weighted values); the whole square is counted, as kernels on a CPU compute it and as torch
counts it, although half of it is masked. The head costs 2 D V for each token whose logits are
asked for. Left out: norms, rotary embedding, activations, softmax (together under a percent at real
widths), and the vision tower, which no depth changes (``counted_flops`` counts it).

With I image tokens and T others at depth d, layers below d pass I + T tokens and the rest T, or
T + s I where a share s of the image tokens stays. Where they are frozen instead, the rest pass T
tokens, make keys and values of I more (2 I D G h multiply-adds) and attend from T to I + T.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from visdepth_utils.data.samples import Sample
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.vlm import VLM

UNGATED = frozenset({"gpt_neox", "nemotron", "persimmon", "phi", "starcoder2"})
"""Model types whose MLP has two maps, up and down; all others have a gate as well."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a text decoder that costs depend on."""

    layers: int  # L
    width: int  # D
    heads: int  # H, of queries
    kv_heads: int  # G, of keys and values
    head_dim: int  # h
    inner: int  # F, inner width of the MLP
    gated: bool  # whether the MLP has a gate beside up and down
    vocabulary: int  # V

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's linear maps, biases left out."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return attention + (3 if self.gated else 2) * self.width * self.inner

    @property
    def head_weights(self) -> int:
        """Weights of the output head, D x V."""
        return self.width * self.vocabulary

    def linear(self, tokens: int) -> int:
        """FLOPs of one layer's linear maps for so many tokens."""
        return 2 * tokens * self.layer_weights

    def attention(self, queries: int, keys: int) -> int:
        """FLOPs of one layer's attention, the whole rectangle."""
        return 4 * queries * keys * self.heads * self.head_dim

    def kv_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Bytes that one layer's cache holds for so many tokens."""
        return 2 * self.kv_heads * self.head_dim * tokens * bytes_per_value


def shape_of(config: Any) -> Shape:
    """Read the sizes from transformers' configuration of a decoder or of a whole model.

    Raises:
        ValueError: A size is missing, or the decoder is one that this cost model does not describe
            (experts, linear attention).
    """
    text = config.get_text_config()
    kind = text.model_type
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    lacking = [n for n in (*names, "vocab_size") if not isinstance(getattr(text, n, None), int)]
    if lacking:
        raise ValueError(
            f"configuration of {kind!r} has no number for {', '.join(lacking)}: costs can be "
            "predicted for decoders whose layers all have one width"
        )
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if getattr(text, name, None):
            raise ValueError(f"{kind!r} has experts ({name}): its costs depend on their routing")
    if "linear_attention" in (getattr(text, "layer_types", None) or ()):
        raise ValueError(f"{kind!r} has linear attention: its layers keep no keys and values")
    if getattr(text, "is_heterogeneous", False):
        raise ValueError(f"{kind!r} has layers of several shapes: this cost model knows one")
    heads = text.num_attention_heads
    return Shape(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        inner=text.intermediate_size,
        gated=kind not in UNGATED,
        vocabulary=text.vocab_size,
    )


def predicted_costs(
    shape: Shape,
    image_tokens: int,
    other_tokens: int,
    depths: str | Sequence[int] = "all",
    *,
    share: float = 0.0,
    frozen: bool = False,
    bytes_per_value: int = 2,
) -> pd.DataFrame:
    """Costs of one sample by depth, absolute and as shares of the whole model's.

    Args:
        shape: Of the decoder.
        image_tokens: I.
        other_tokens: T, all other tokens of the prompt, and in decoding those generated so far.
        depths: ``"all"`` or numbers in 0..L.
        share: Of the image tokens, the share that stays from depth d on.
        frozen: From depth d on image tokens are read and no longer processed.
        bytes_per_value: Of weights and cache: 2 for bfloat16, 4 for float32.

    Returns:
        One row per depth: ``depth, image_tokens, prefill_linear, prefill_attention, prefill_head,
        prefill_flops`` (their sum), ``decode_flops`` (the next token after T others),
        ``decode_bytes`` (weights of layers and head, and cache, that this token must read),
        ``kv_bytes`` (cache held after the prefill), and of the last four the share of depth L,
        ``prefill_ratio, decode_ratio, decode_bytes_ratio, kv_ratio``.

    Raises:
        ValueError: No image or no other token, or a depth outside 0..L.
    """
    if image_tokens < 1 or other_tokens < 1:
        raise ValueError(
            f"{image_tokens} image and {other_tokens} other tokens: give at least one of each"
        )
    last = shape.layers
    asked = range(last + 1) if isinstance(depths, str) else sorted(depths)
    if wrong := [d for d in asked if not 0 <= d <= last]:
        raise ValueError(f"depth {wrong[0]} is not in 0..{last}")
    kept = round(share * image_tokens)
    both, some = image_tokens + other_tokens, other_tokens + kept
    read = both if frozen else some  # keys of a layer from depth d on
    keys_of_frozen = 4 * (image_tokens - kept) * shape.width * shape.kv_heads * shape.head_dim

    def row(depth: int) -> dict[str, int]:
        with_image, without = depth, last - depth
        late = shape.linear(some) + (keys_of_frozen if frozen else 0)
        linear = with_image * shape.linear(both) + without * late
        square = with_image * shape.attention(both, both) + without * shape.attention(some, read)
        head = 2 * shape.head_weights
        held = with_image * both + without * read
        decode = last * shape.linear(1) + shape.attention(1, held) + head
        cache = shape.kv_bytes(held, bytes_per_value)
        weights = last * shape.layer_weights + shape.head_weights
        return {
            "depth": depth,
            "image_tokens": image_tokens,
            "prefill_linear": linear,
            "prefill_attention": square,
            "prefill_head": head,
            "prefill_flops": linear + square + head,
            "decode_flops": decode,
            "decode_bytes": weights * bytes_per_value + cache,
            "kv_bytes": cache,
        }

    full, table = row(last), pd.DataFrame([row(d) for d in asked])
    for name, column in (
        ("prefill", "prefill_flops"),
        ("decode", "decode_flops"),
        ("decode_bytes", "decode_bytes"),
        ("kv", "kv_bytes"),
    ):
        table[f"{name}_ratio"] = table[column] / full[column]
    return table


def counted_flops(vlm: VLM, enc: Encoded) -> dict[str, int]:
    """Run a batch once and let torch count the FLOPs of ``vision``, ``decoder`` and ``head``.

    ``vision`` is tower and projector; the head makes one token's logits. Inside
    ``physical.truncated_physically`` it counts the truncated pass.
    """
    decoder, head = vlm.model.get_decoder(), vlm.model.get_output_embeddings()
    names = {module: name for name, module in vlm.model.named_modules()}
    # torch has formulas for the attention kernels of GPUs only.
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(query: Any, key: Any, value: Any, *_args: Any, **_kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    counter = FlopCounterMode(display=False, custom_mapping={on_cpu: attention})
    with counter, torch.no_grad():
        vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1)
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    kind = type(vlm.model).__name__
    counts = {
        part: by_module.get(f"{kind}.{names[module]}", 0)
        for part, module in (("decoder", decoder), ("head", head))
    }
    return {"vision": by_module["Global"] - sum(counts.values()), **counts}


def with_token_layers(vlm: VLM, sweep: pd.DataFrame, samples: Sequence[Sample]) -> pd.DataFrame:
    """Add ``token_layers``: the cost of each answer of a sweep if image rows were really dropped.

    Image tokens pass d layers, all other tokens of the prompt and those generated pass all L::

        token_layers = image tokens x d + (other tokens + generated tokens) x L

    Attention's square term and the vision tower are left out. ValueError if a row's sample is not
    among ``samples``.
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
