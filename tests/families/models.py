"""Tiny random models of eleven families, from their configurations.

Weights are drawn wide enough that the image, the mask and the positions all move the logits by far
more than rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
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
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.25,
    "max_position_embeddings": 512,
}
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vision_use_head": False,
}
QWEN_TOWER: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "vision_start_token_id": BEGIN,
    "vision_end_token_id": END,
    "video_token_id": 8,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


@dataclass(frozen=True)
class Made:
    """How a family is made.

    Attributes:
        model: Builds the model.
        pictures: Images of each sample -> token block of each kind, and what the forward pass takes
            for all of them.
    """

    model: Callable[[], T.PreTrainedModel]
    pictures: Callable[[Pictures], Given]


def _llava() -> T.PreTrainedModel:
    text = {**TEXT, "model_type": "llama"}
    config = T.LlavaConfig(
        vision_config=SIGLIP,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return T.LlavaForConditionalGeneration(config)


def _llava_next() -> T.PreTrainedModel:
    config = T.LlavaNextConfig(
        vision_config=SIGLIP,
        text_config={**TEXT, "model_type": "mistral", "sliding_window": None},
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[16, 16], [16, 32]],
    )
    return T.LlavaNextForConditionalGeneration(config)


def _llava_onevision() -> T.PreTrainedModel:
    config = T.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config={**TEXT, "model_type": "qwen2"},
        image_token_index=IMAGE,
        video_token_index=8,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[16, 16], [16, 32]],
    )
    return T.LlavaOnevisionForConditionalGeneration(config)


def _qwen2() -> T.PreTrainedModel:
    tower = {**QWEN_TOWER, "embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 1}
    text = {**TEXT, "rope_parameters": MROPE}
    config = T.Qwen2VLConfig(vision_config=tower, text_config=text, **QWEN_IDS)
    return T.Qwen2VLForConditionalGeneration(config)


def _qwen2_5() -> T.PreTrainedModel:
    tower = {**QWEN_TOWER, "out_hidden_size": WIDTH, "window_size": 16}
    tower |= {"fullatt_block_indexes": [2]}
    text = {**TEXT, "rope_parameters": MROPE}
    config = T.Qwen2_5_VLConfig(vision_config=tower, text_config=text, **QWEN_IDS)
    return T.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3() -> T.PreTrainedModel:
    tower = {**QWEN_TOWER, "out_hidden_size": WIDTH, "num_position_embeddings": 16}
    tower |= {"deepstack_visual_indexes": [0, 1, 2]}
    text = {**TEXT, "num_hidden_layers": 6, "rope_parameters": MROPE}
    config = T.Qwen3VLConfig(vision_config=tower, text_config=text, **QWEN_IDS)
    return T.Qwen3VLForConditionalGeneration(config)


def _internvl() -> T.PreTrainedModel:
    config = T.InternVLConfig(
        vision_config={
            "image_size": [32, 32],
            "patch_size": [8, 8],
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        text_config={**TEXT, "model_type": "qwen2"},
        image_token_id=IMAGE,
        image_seq_length=4,
    )
    return T.InternVLForConditionalGeneration(config)


def _idefics3() -> T.PreTrainedModel:
    tower = {**SIGLIP, "model_type": "idefics3_vision", "patch_size": 4}
    del tower["vision_use_head"]
    config = T.Idefics3Config(
        vision_config=tower,
        text_config={**TEXT, "model_type": "llama"},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return T.Idefics3ForConditionalGeneration(config)


def _gemma3() -> T.PreTrainedModel:
    text = {
        **TEXT,
        "query_pre_attn_scalar": 8,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    config = T.Gemma3Config(
        vision_config={**SIGLIP, "patch_size": 4},
        text_config=text,
        image_token_index=IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
        mm_tokens_per_image=4,
        initializer_range=0.25,
    )
    return T.Gemma3ForConditionalGeneration(config)


def _paligemma() -> T.PreTrainedModel:
    config = T.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": WIDTH},
        text_config={**TEXT, "model_type": "gemma"},
        image_token_index=IMAGE,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    return T.PaliGemmaForConditionalGeneration(config)


def _mistral3() -> T.PreTrainedModel:
    config = T.Mistral3Config(
        vision_config={
            "model_type": "pixtral",
            "image_size": 32,
            "patch_size": 4,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
        },
        text_config={**TEXT, "model_type": "mistral", "sliding_window": None},
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return T.Mistral3ForConditionalGeneration(config)


MADE = {
    "llava": Made(_llava, flat(4)),
    "llava_next": Made(_llava_next, tiled({-1: 10, -2: 14})),
    "llava_onevision": Made(_llava_onevision, tiled({-1: 10, -2: 14})),
    "qwen2_vl": Made(_qwen2, qwen),
    "qwen2_5_vl": Made(_qwen2_5, qwen),
    "qwen3_vl": Made(_qwen3, qwen),
    "internvl": Made(_internvl, flat(4, 32, (BEGIN, END))),
    "idefics3": Made(_idefics3, idefics),
    "gemma3": Made(_gemma3, flat(4, 16, (BEGIN, END))),
    "paligemma": Made(_paligemma, flat(4)),
    "mistral3": Made(_mistral3, pixtral),
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
