"""Tiny random models of eleven families, from their configurations.

Weights are drawn wide enough that the image, the mask and the positions all move the logits by far
more than rounding.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as T

from tests.families.pictures import (
    BEGIN,
    END,
    FIRST_WORD,
    IMAGE,
    PAD,
    VOCAB,
    Given,
    Pictures,
    flat,
    idefics,
    pixtral,
    qwen,
    tiled,
)
from visdepth_utils.models.families import FAMILIES
from visdepth_utils.models.vlm import VLM

LAYERS, WIDTH = 4, 32
TEXT: dict[str, Any] = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS)
TEXT |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=VOCAB)
TEXT |= dict(pad_token_id=PAD, bos_token_id=2, eos_token_id=3, initializer_range=0.25)
TEXT |= dict(max_position_embeddings=512)
_TOWER: dict[str, Any] = dict(hidden_size=16, intermediate_size=16)
_LAYERS = {**_TOWER, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION = {**_LAYERS, "image_size": 16, "patch_size": 8}
SIGLIP = {**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
QWEN_TOWER = {**_TOWER, "depth": 3, "num_heads": 2, "patch_size": 4}
QWEN_TOWER |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_IDS = dict(image_token_id=IMAGE, vision_start_token_id=BEGIN, vision_end_token_id=END)
QWEN_IDS["video_token_id"] = 8
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


class Made:
    """How a family is made: transformers' classes ``<kind>Config`` and so on, and its pictures.

    ``pictures``: images of each sample -> token block of each kind, and what the forward pass takes
    for all of them. ``parts``: arguments of the configuration.
    """

    def __init__(self, kind: str, pictures: Callable[[Pictures], Given], **parts: Any) -> None:
        self.kind, self.pictures, self.parts = kind, pictures, parts

    def model(self) -> T.PreTrainedModel:
        config = getattr(T, f"{self.kind}Config")(**copy.deepcopy(self.parts))
        return getattr(T, f"{self.kind}ForConditionalGeneration")(config)


_IMAGE = {"image_token_index": IMAGE}
_WHOLE = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
_TILES = {**_IMAGE, **_WHOLE, "vision_config": SIGLIP, "image_grid_pinpoints": [[16, 16], [16, 32]]}
_MISTRAL = {**TEXT, "model_type": "mistral", "sliding_window": None}
_LLAMA, _QWEN2 = ({**TEXT, "model_type": kind} for kind in ("llama", "qwen2"))
_ROTARY = {**TEXT, "rope_parameters": MROPE}
_WINDOWS = {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"] * 2}
_TWO = {**QWEN_TOWER, "embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 1}
_TWO_FIVE = {"out_hidden_size": WIDTH, "window_size": 16, "fullatt_block_indexes": [2]}
_THREE = {"out_hidden_size": WIDTH, "num_position_embeddings": 16}
_THREE |= {"deepstack_visual_indexes": [0, 1, 2]}

MADE = {
    "llava": Made("Llava", flat(4), vision_config=SIGLIP, text_config=_LLAMA, **_IMAGE, **_WHOLE),
    "llava_next": Made("LlavaNext", tiled({-1: 10, -2: 14}), text_config=_MISTRAL, **_TILES),
    "llava_onevision": Made(
        "LlavaOnevision", tiled({-1: 10, -2: 14}), text_config=_QWEN2, video_token_index=8, **_TILES
    ),
    "qwen2_vl": Made("Qwen2VL", qwen, vision_config=_TWO, text_config=_ROTARY, **QWEN_IDS),
    "qwen2_5_vl": Made(
        "Qwen2_5_VL", qwen, vision_config=QWEN_TOWER | _TWO_FIVE, text_config=_ROTARY, **QWEN_IDS
    ),
    "qwen3_vl": Made(
        "Qwen3VL",
        qwen,
        vision_config=QWEN_TOWER | _THREE,
        text_config={**_ROTARY, "num_hidden_layers": 6},
        **QWEN_IDS,
    ),
    "internvl": Made(
        "InternVL",
        flat(4, 32, (BEGIN, END)),
        vision_config={**_LAYERS, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config=_QWEN2,
        image_token_id=IMAGE,
        image_seq_length=4,
    ),
    "idefics3": Made(
        "Idefics3",
        idefics,
        vision_config={**_VISION, "model_type": "idefics3_vision", "patch_size": 4},
        text_config=_LLAMA,
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    ),
    "gemma3": Made(
        "Gemma3",
        flat(4, 16, (BEGIN, END)),
        vision_config={**SIGLIP, "patch_size": 4},
        text_config={**TEXT, **_WINDOWS, "query_pre_attn_scalar": 8},
        **_IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
        mm_tokens_per_image=4,
        initializer_range=0.25,
    ),
    "paligemma": Made(
        "PaliGemma",
        flat(4),
        vision_config={**SIGLIP, "projection_dim": WIDTH},
        text_config={**TEXT, "model_type": "gemma"},
        **_IMAGE,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    ),
    "mistral3": Made(
        "Mistral3",
        pixtral,
        vision_config={
            **_LAYERS,
            "model_type": "pixtral",
            "image_size": 32,
            "patch_size": 4,
            "head_dim": 8,
        },
        text_config=_MISTRAL,
        **_IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    ),
}
NAMES = tuple(MADE)


@cache
def tiny_model(name: str, attention: str = "sdpa") -> VLM:
    """A random model of a family; the same weights whatever the attention."""
    torch.manual_seed(1)
    return wide(MADE[name].model(), name, attention)


def wide(model: T.PreTrainedModel, name: str, attention: str = "sdpa") -> VLM:
    """A model of a family with weights drawn as those of ``tiny_model``."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():  # norms and the like keep their ones
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.3 * parameter.shape[-1] ** -0.5)
    _never_says_an_image(model)
    model.set_attn_implementation(attention)
    return VLM(
        model=model,
        processor=None,
        family=FAMILIES[name],
        image_token_id=IMAGE,
        device=torch.device("cpu"),
        dtype=torch.float32,
        name=f"tiny {name}",
        weights_hash="",
    )


def _never_says_an_image(model: T.PreTrainedModel) -> None:
    """An output head that says words only: behind a prompt, an image token would be an image.

    It is not tied to the embedding, which would make a random model repeat its last word.
    """
    new = torch.nn.Linear(WIDTH, VOCAB)
    with torch.no_grad():
        new.weight.normal_(std=WIDTH**-0.5)
        new.bias.zero_()[:FIRST_WORD] = -20
    model.set_output_embeddings(new.requires_grad_(False))
