"""Tiny random checkpoints of every family, written as they lie on the hub, to be loaded from there.

A folder holds config.json, safetensors, the family's own processor with its image processor, a chat
template in the family's style and a tokenizer with the family's special tokens. Only the sizes and
the weights are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers as T

from tests.families.models import MROPE, QWEN_TOWER, SIGLIP, TEXT, WIDTH
from tests.families.templates import (
    AYA,
    DEEPSEEK,
    GEMMA,
    GEMMA4,
    GLM,
    IDEFICS,
    INTERNVL,
    LLAVA,
    LLAVA_NEXT,
    MISTRAL,
    ONEVISION,
    OVIS,
    QWEN2,
    QWEN3,
    QWEN3_5,
)
from tests.families.words import Tokens
from visdepth_utils.models.reading import quiet

Ids = Callable[[str], int]
"""Token -> id."""

TOWER = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
CLIP = {**TOWER, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 8}
CLIP |= {"num_hidden_layers": 2, "projection_dim": 16}
PIXTRAL_TOWER = {**TOWER, "model_type": "pixtral", "image_size": 32, "patch_size": 4, "head_dim": 8}
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
ROPE = {"rope_type": "default", "rope_theta": 1e4}
SQUARE = {"height": 16, "width": 16}


@dataclass(frozen=True)
class Checkpoint:
    """How a family's checkpoint is made, and what it must be read as."""

    title: str  # as people call it
    kind: type[T.PreTrainedConfig]
    config: Callable[[Ids], dict[str, Any]]  # parts of config.json that are not in every one
    tokens: Tokens
    image_token: str  # what image features replace
    template: str  # chat_template.jinja; empty where the hub's checkpoints have none
    images: dict[str, Any]  # preprocessor_config.json
    processor: dict[str, Any]  # processor_config.json
    said: str  # text of a prompt with one image, its special and structural tokens left out
    per_image: str = ""  # what stands in it for each image
    structural: tuple[str, ...] = ()  # tokens of an image that are neither image nor text
    size: Callable[[int, int], int] = lambda w, h: 4  # image tokens of a picture (width, height)
    several: int | None = None  # of each picture where a sample shows several; None for ``size``

    def write(self, folder: Path) -> Path:
        """Make the folder and write the checkpoint into it."""
        folder.mkdir(parents=True, exist_ok=True)
        words = self.tokens.tokenizer()
        with quiet():
            _model(self, words).save_pretrained(folder)
            words.save_pretrained(folder)
        for name, content in (("preprocessor", self.images), ("processor", self.processor)):
            (folder / f"{name}_config.json").write_text(json.dumps(content, indent=1))
        if self.template:
            (folder / "chat_template.jinja").write_text(self.template)
        return folder


def _model(made: Checkpoint, words: T.PreTrainedTokenizerFast) -> T.PreTrainedModel:
    """Random weights, wide enough that image, mask and positions move the logits."""
    ids = words.convert_tokens_to_ids
    given = made.config(ids)
    given["text_config"] = {
        **TEXT,
        "vocab_size": len(words),
        "pad_token_id": ids(made.tokens.pad),
        "bos_token_id": ids(made.tokens.bos) if made.tokens.bos else None,
        "eos_token_id": ids(made.tokens.eos),
        **given["text_config"],
    }
    if "vocab_size" in given:
        given["vocab_size"] = len(words)
    torch.manual_seed(1)
    model = T.AutoModelForImageTextToText.from_config(made.kind(**given))
    for name, parameter in model.named_parameters():  # norms and the like keep their ones
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.3 * parameter.shape[-1] ** -0.5)
        elif "norm" not in name and name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    # Behind a prompt, an image token would be an image: the head does not say it.
    never = [ids(token) for token in words.all_special_tokens if token != made.tokens.eos]
    untied = model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    with torch.no_grad():
        rows = never if untied else [ids(made.image_token)]
        model.get_output_embeddings().weight[rows] = 0
    return model


def _qwen_ids(ids: Ids) -> dict[str, int]:
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def _qwen_grid(patch: int) -> Callable[[int, int], int]:
    """Pictures here are small multiples of a merged patch, so none is resized."""
    return lambda w, h: (w // (2 * patch)) * (h // (2 * patch))


def _qwen_images(patch: int) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": patch,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 4096},
    }


QWEN = Tokens(
    pad="<|endoftext|>",
    eos="<|im_end|>",
    special=(
        *("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
        *("<|image_pad|>", "<|video_pad|>"),
    ),
)
CHATML_TOKENS = Tokens(
    pad="<|endoftext|>", eos="<|im_end|>", special=("<|im_start|>", "<image>", "<video>")
)
LLAMA = Tokens(pad="<pad>", bos="<s>", eos="</s>", adds_bos=True, special=("<image>",))
TEKKEN = Tokens(
    pad="<pad>",
    bos="<s>",
    eos="</s>",
    adds_bos=True,
    special=("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
)
OVIS_TOKENS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
ROWS = tuple(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))
IDEFICS_TOKENS = Tokens(
    pad="<|end_of_text|>",
    bos="<|im_start|>",
    eos="<end_of_utterance>",
    special=("<fake_token_around_image>", "<image>"),
    added=("<global-img>", *ROWS),
)
VISION = ("<|vision_start|>", "<|vision_end|>")
TALK = "user \n {images} {prompt} \n assistant \n"
SPOKEN = f"system \n You are a helpful assistant. \n {TALK}"


def _anyres(w: int, h: int) -> int:
    """An overview of 4 tokens, and the unpadded part of the best grid with a newline per row."""
    if w == h:
        return 4 + 16 + 4
    wide, high = (4, 2) if w > h else (2, 4)
    return 4 + wide * high + high


def _tiles(w: int, h: int) -> int:
    """Tiles in the grid of the picture's shape, and an overview where there are several."""
    n = {1.0: 1, 2.0: 2, 0.5: 2}[w / h]
    return 4 * (n + (n > 1))


def _split(w: int, h: int) -> int:
    """Idefics, Aya: tiles of half the longer side, and an overview."""
    return 4 * (5 if w == h else 3)


def _soft(w: int, h: int) -> int:
    """Gemma 4: as many squares of 8 pixels as make at most 70."""
    scale = (70 * 64 / (w * h)) ** 0.5
    return int(w * scale // 8) * int(h * scale // 8)


def _merged(patch: int) -> Callable[[int, int], int]:
    """Pixtral: the longer side at most 32 pixels, in merged patches."""

    def size(w: int, h: int) -> int:
        scale = max(w, h, 32) / 32
        return -(-int(w / scale) // patch) * -(-int(h / scale) // patch)

    return size


CHECKPOINTS = {
    "llava": Checkpoint(
        title="LLaVA-1.5",
        kind=T.LlavaConfig,
        config=lambda ids: {
            "vision_config": CLIP,
            "text_config": {"model_type": "llama"},
            "image_token_index": ids("<image>"),
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        },
        tokens=LLAMA,
        image_token="<image>",
        template=LLAVA,
        images={
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 16},
            "crop_size": SQUARE,
        },
        processor={
            "processor_class": "LlavaProcessor",
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        said="USER: {images} {prompt} ASSISTANT:",
        per_image="\n ",
    ),
    "llava_next": Checkpoint(
        title="LLaVA-NeXT",
        kind=T.LlavaNextConfig,
        config=lambda ids: {
            "vision_config": CLIP,
            "text_config": {"model_type": "mistral", "sliding_window": None},
            "image_token_index": ids("<image>"),
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "image_grid_pinpoints": PINPOINTS,
        },
        tokens=LLAMA,
        image_token="<image>",
        template=LLAVA_NEXT,
        images={
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 16},
            "crop_size": SQUARE,
            "image_grid_pinpoints": PINPOINTS,
        },
        processor={
            "processor_class": "LlavaNextProcessor",
            "patch_size": 8,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,
        },
        said="[INST] {images} {prompt} [/INST]",
        per_image="\n ",
        size=_anyres,
    ),
    "llava_onevision": Checkpoint(
        title="LLaVA-OneVision",
        kind=T.LlavaOnevisionConfig,
        config=lambda ids: {
            "vision_config": SIGLIP,
            "text_config": {"model_type": "qwen2"},
            "image_token_index": ids("<image>"),
            "video_token_index": ids("<video>"),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_grid_pinpoints": PINPOINTS,
        },
        tokens=CHATML_TOKENS,
        image_token="<image>",
        template=ONEVISION,
        images={
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": SQUARE,
            "image_grid_pinpoints": PINPOINTS,
        },
        processor={
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
        },
        said="user {images} \n {prompt} assistant \n",
        size=_anyres,
        several=5,
    ),
    "qwen2_vl": Checkpoint(
        title="Qwen2-VL",
        kind=T.Qwen2VLConfig,
        config=lambda ids: {
            "vision_config": {**QWEN_TOWER, "embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 1},
            "text_config": {"rope_parameters": MROPE},
            "tie_word_embeddings": True,
            **_qwen_ids(ids),
        },
        tokens=QWEN,
        image_token="<|image_pad|>",
        template=QWEN2,
        images=_qwen_images(4),
        processor={"processor_class": "Qwen2VLProcessor"},
        said=SPOKEN,
        structural=VISION,
        size=_qwen_grid(4),
    ),
    "qwen2_5_vl": Checkpoint(
        title="Qwen2.5-VL",
        kind=T.Qwen2_5_VLConfig,
        config=lambda ids: {
            "vision_config": {
                **QWEN_TOWER,
                "out_hidden_size": WIDTH,
                "window_size": 16,
                "fullatt_block_indexes": [2],
            },
            "text_config": {"rope_parameters": MROPE},
            **_qwen_ids(ids),
        },
        tokens=QWEN,
        image_token="<|image_pad|>",
        template=QWEN2,
        images=_qwen_images(4),
        processor={"processor_class": "Qwen2_5_VLProcessor"},
        said=SPOKEN,
        structural=VISION,
        size=_qwen_grid(4),
    ),
    "qwen3_vl": Checkpoint(
        title="Qwen3-VL",
        kind=T.Qwen3VLConfig,
        config=lambda ids: {
            "vision_config": {
                **QWEN_TOWER,
                "out_hidden_size": WIDTH,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1, 2],
            },
            "text_config": {"rope_parameters": MROPE, "num_hidden_layers": 6},
            **_qwen_ids(ids),
        },
        tokens=QWEN,
        image_token="<|image_pad|>",
        template=QWEN3,
        images=_qwen_images(4),
        processor={"processor_class": "Qwen3VLProcessor"},
        said=TALK,
        structural=VISION,
        size=_qwen_grid(4),
    ),
    "qwen3_5": Checkpoint(
        title="Qwen3.5",
        kind=T.Qwen3_5Config,
        config=lambda ids: {
            "vision_config": {
                **QWEN_TOWER,
                "out_hidden_size": WIDTH,
                "num_position_embeddings": 16,
            },
            "text_config": {
                "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0},
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "layer_types": ["linear_attention", "full_attention"] * 2,
            },
            **_qwen_ids(ids),
        },
        tokens=replace(QWEN, bytes=True),
        image_token="<|image_pad|>",
        template=QWEN3_5,
        images=_qwen_images(4),
        processor={"processor_class": "Qwen3VLProcessor"},
        said=f"{TALK} <think> \n\n </think> \n\n",
        structural=VISION,
        size=_qwen_grid(4),
    ),
    "internvl": Checkpoint(
        title="InternVL",
        kind=T.InternVLConfig,
        config=lambda ids: {
            "vision_config": {"image_size": [32, 32], "patch_size": [8, 8], **TOWER},
            "text_config": {"model_type": "qwen2"},
            "image_token_id": ids("<IMG_CONTEXT>"),
            "image_seq_length": 4,
        },
        tokens=Tokens(
            pad="<|endoftext|>",
            eos="<|im_end|>",
            named={
                "start_image_token": "<img>",
                "end_image_token": "</img>",
                "context_image_token": "<IMG_CONTEXT>",
                "video_token": "<video>",
            },
            special=("<|im_start|>",),
        ),
        image_token="<IMG_CONTEXT>",
        template=INTERNVL,
        images={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 32, "width": 32},
            "max_patches": 4,
        },
        processor={"processor_class": "InternVLProcessor", "image_seq_length": 4},
        said=TALK,
        per_image="\n ",
        structural=("<img>", "</img>"),
        size=_tiles,
    ),
    "idefics3": Checkpoint(
        title="Idefics3",
        kind=T.Idefics3Config,
        config=lambda ids: {
            "vision_config": {**SIGLIP, "model_type": "idefics3_vision", "patch_size": 4},
            "text_config": {"model_type": "llama"},
            "image_token_id": ids("<image>"),
            "scale_factor": 2,
            "pad_token_id": ids("<|end_of_text|>"),
        },
        tokens=IDEFICS_TOKENS,
        image_token="<image>",
        template=IDEFICS,
        images={
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": 32},
            "max_image_size": {"longest_edge": 16},
        },
        processor={"processor_class": "Idefics3Processor", "image_seq_len": 4},
        said="User: {images} {prompt} \n Assistant:",
        structural=("<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "\n", "\n\n"),
        size=_split,
    ),
    "smolvlm": Checkpoint(
        title="SmolVLM2",
        kind=T.SmolVLMConfig,
        config=lambda ids: {
            "vision_config": {**SIGLIP, "model_type": "smolvlm_vision", "patch_size": 4},
            "text_config": {"model_type": "llama"},
            "image_token_id": ids("<image>"),
            "scale_factor": 2,
            "pad_token_id": ids("<|end_of_text|>"),
        },
        tokens=IDEFICS_TOKENS,
        image_token="<image>",
        template=IDEFICS,
        images={
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 32},
            "max_image_size": {"longest_edge": 16},
        },
        processor={"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
        said="User: {images} {prompt} \n Assistant:",
        structural=("<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "\n", "\n\n"),
        size=_split,
    ),
    "gemma3": Checkpoint(
        title="Gemma 3",
        kind=T.Gemma3Config,
        config=lambda ids: {
            "vision_config": {**SIGLIP, "patch_size": 4},
            "text_config": {
                "query_pre_attn_scalar": 8,
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            "image_token_id": ids("<image_soft_token>"),
            "boi_token_index": ids("<start_of_image>"),
            "eoi_token_index": ids("<end_of_image>"),
            "mm_tokens_per_image": 4,
        },
        tokens=Tokens(
            pad="<pad>",
            bos="<bos>",
            eos="<end_of_turn>",
            adds_bos=True,
            named={
                "boi_token": "<start_of_image>",
                "eoi_token": "<end_of_image>",
                "image_token": "<image_soft_token>",
            },
            special=("<start_of_turn>",),
        ),
        image_token="<image_soft_token>",
        template=GEMMA,
        images={"image_processor_type": "Gemma3ImageProcessor", "size": SQUARE},
        processor={"processor_class": "Gemma3Processor", "image_seq_length": 4},
        said="user {images} {prompt} \n model \n",
        structural=("<start_of_image>", "<end_of_image>", "\n\n", "\n\n\n"),
    ),
    "paligemma": Checkpoint(
        title="PaliGemma",
        kind=T.PaliGemmaConfig,
        config=lambda ids: {
            "vision_config": {**SIGLIP, "projection_dim": WIDTH},
            "text_config": {"model_type": "gemma"},
            "image_token_index": ids("<image>"),
            "projection_dim": WIDTH,
            "hidden_size": WIDTH,
        },
        tokens=Tokens(pad="<pad>", bos="<bos>", eos="<eos>", adds_bos=True, special=("<image>",)),
        image_token="<image>",
        template="",
        images={
            "image_processor_type": "SiglipImageProcessor",
            "size": SQUARE,
            "image_seq_length": 4,
        },
        processor={"processor_class": "PaliGemmaProcessor"},
        said="{images} {prompt} \n",
    ),
    "mistral3": Checkpoint(
        title="Mistral 3",
        kind=T.Mistral3Config,
        config=lambda ids: {
            "vision_config": PIXTRAL_TOWER,
            "text_config": {"model_type": "mistral", "sliding_window": None},
            "image_token_id": ids("[IMG]"),
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
        },
        tokens=TEKKEN,
        image_token="[IMG]",
        template=MISTRAL,
        images={
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 32},
            "patch_size": 4,
        },
        processor={"processor_class": "PixtralProcessor", "patch_size": 4, "spatial_merge_size": 2},
        said="{images} {prompt}",
        structural=("[IMG_BREAK]", "[IMG_END]"),
        size=_merged(8),
    ),
    "pixtral": Checkpoint(
        title="Pixtral",
        kind=T.LlavaConfig,
        config=lambda ids: {
            "vision_config": PIXTRAL_TOWER,
            "text_config": {"model_type": "mistral", "sliding_window": None},
            "image_token_index": ids("[IMG]"),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        tokens=TEKKEN,
        image_token="[IMG]",
        template=MISTRAL,
        images={
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 32},
            "patch_size": 4,
        },
        processor={"processor_class": "PixtralProcessor", "patch_size": 4},
        said="{images} {prompt}",
        structural=("[IMG_BREAK]", "[IMG_END]"),
        size=_merged(4),
    ),
    "aya_vision": Checkpoint(
        title="Aya Vision",
        kind=T.AyaVisionConfig,
        config=lambda ids: {
            "vision_config": SIGLIP | {"patch_size": 4},
            "text_config": {
                "model_type": "cohere2",
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            "image_token_index": ids("<|IMG_PATCH|>"),
            "vision_feature_layer": -1,
        },
        tokens=Tokens(
            pad="<PAD>",
            bos="<BOS_TOKEN>",
            eos="<|END_OF_TURN_TOKEN|>",
            adds_bos=True,
            special=(
                *("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
                *("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"),
                "<image>",
            ),
            added=("TILE_GLOBAL", *(f"TILE_{i}" for i in range(1, 13))),
        ),
        image_token="<|IMG_PATCH|>",
        template=AYA,
        images={"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE, "max_patches": 4},
        processor={
            "processor_class": "AyaVisionProcessor",
            "patch_size": 4,
            "img_size": 16,
            "downsample_factor": 2,
        },
        said="{images} {prompt}",
        structural=("<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_GLOBAL", "TILE_1"),
        size=_split,
    ),
}


def _like(name: str, **changes: Any) -> Checkpoint:
    """The checkpoint of another family with what differs; ``more``: entries of its config.

    A token among them becomes its id.
    """
    made, more = CHECKPOINTS[name], changes.pop("more", {})
    new = replace(made, **changes)

    def config(ids: Ids) -> dict[str, Any]:
        named = {
            key: ids(value) if key.endswith("_token_id") else value for key, value in more.items()
        }
        return _joined(made.config(ids), named)

    return replace(new, config=config)


def _joined(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Two configurations, text_config joined too; None takes an entry out."""
    both = {**one, **two, "text_config": {**one["text_config"], **two.get("text_config", {})}}
    return {key: value for key, value in both.items() if value is not None}


CHECKPOINTS["vipllava"] = _like(
    "llava",
    title="ViP-LLaVA",
    kind=T.VipLlavaConfig,
    more={
        "vision_feature_layer": None,
        "vision_feature_select_strategy": None,
        "vision_feature_layers": [-1, -2],
    },
)
CHECKPOINTS["qwen3_vl_moe"] = _like(
    "qwen3_vl",
    title="Qwen3-VL-MoE",
    kind=T.Qwen3VLMoeConfig,
    more={"text_config": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}},
)
CHECKPOINTS |= {
    "glm4v": Checkpoint(
        title="GLM-4.1V",
        kind=T.Glm4vConfig,
        config=lambda ids: {
            "vision_config": {**QWEN_TOWER, "out_hidden_size": WIDTH, "image_size": 32},
            "text_config": {"rope_parameters": MROPE},
            "image_token_id": ids("<|image|>"),
            "video_token_id": ids("<|video|>"),
            "image_start_token_id": ids("<|begin_of_image|>"),
            "image_end_token_id": ids("<|end_of_image|>"),
            "video_start_token_id": ids("<|begin_of_video|>"),
            "video_end_token_id": ids("<|end_of_video|>"),
        },
        tokens=Tokens(
            pad="<|endoftext|>",
            eos="<|user|>",
            special=(
                *("[gMASK]", "<sop>", "<|assistant|>", "<|image|>", "<|video|>"),
                *("<|begin_of_image|>", "<|end_of_image|>"),
                *("<|begin_of_video|>", "<|end_of_video|>"),
            ),
        ),
        image_token="<|image|>",
        template=GLM,
        images={
            "image_processor_type": "Glm4vImageProcessor",
            "patch_size": 4,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": 64, "longest_edge": 8192},
        },
        processor={"processor_class": "Glm4vProcessor"},
        said="\n {images} {prompt} \n",
        structural=("<|begin_of_image|>", "<|end_of_image|>"),
        size=_qwen_grid(4),
    )
}
CHECKPOINTS["glm46v"] = _like(
    "glm4v",
    title="GLM-4.6V",
    kind=T.Glm46VConfig,
    images=CHECKPOINTS["glm4v"].images | {"image_processor_type": "Glm46VImageProcessor"},
    processor={"processor_class": "Glm46VProcessor"},
)
CHECKPOINTS |= {
    "idefics2": Checkpoint(
        title="Idefics2",
        kind=T.Idefics2Config,
        config=lambda ids: {
            "vision_config": {"image_size": 16, "patch_size": 4, **TOWER},
            "perceiver_config": {
                "hidden_size": WIDTH,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
            "text_config": {"model_type": "mistral", "sliding_window": None},
            "image_token_id": ids("<image>"),
        },
        tokens=Tokens(
            pad="<unk>",
            bos="<s>",
            eos="<end_of_utterance>",
            adds_bos=True,
            special=("<fake_token_around_image>", "<image>"),
        ),
        image_token="<image>",
        template=IDEFICS.removeprefix("<|im_start|>"),
        images={
            "image_processor_type": "Idefics2ImageProcessor",
            "size": {"longest_edge": 16, "shortest_edge": 8},
            "do_image_splitting": True,
        },
        processor={"processor_class": "Idefics2Processor", "image_seq_len": 4},
        said="User: {images} {prompt} \n Assistant:",
        structural=("<fake_token_around_image>",),
        size=lambda w, h: 20,
    ),
    "ovis2": Checkpoint(
        title="Ovis2",
        kind=T.Ovis2Config,
        config=lambda ids: {
            "vision_config": {
                "image_size": 16,
                "patch_size": 4,
                **TOWER,
                "vocab_size": 32,
                "hidden_stride": 2,
            },
            "text_config": {"model_type": "qwen2"},
            "image_token_id": ids("<IMG_ATOM>"),
            "visual_indicator_token_ids": [ids(token) for token in OVIS_TOKENS],
            "hidden_size": WIDTH,
            "vocab_size": len(OVIS_TOKENS),  # becomes that of the tokenizer
            "tie_word_embeddings": False,  # a head that says no tag of an image
        },
        tokens=Tokens(
            pad="<|endoftext|>",
            eos="<|im_end|>",
            special=("<|im_start|>", "<image>", "<IMG_ATOM>", *OVIS_TOKENS),
        ),
        image_token="<IMG_ATOM>",
        template=OVIS,
        images={
            "image_processor_type": "Ovis2ImageProcessor",
            "size": SQUARE,
            "crop_to_patches": True,
            "max_patches": 4,
        },
        processor={"processor_class": "Ovis2Processor", "image_seq_length": 4},
        said=TALK,
        per_image="\n ",
        structural=("<IMG_START>", "<IMG_GRID>", "<IMG_END>"),
        size=_split,
    ),
    "deepseek_vl": Checkpoint(
        title="DeepSeek-VL",
        kind=T.DeepseekVLConfig,
        config=lambda ids: {
            "vision_config": SIGLIP,
            "text_config": {"model_type": "llama"},
            "image_token_id": ids("<image_placeholder>"),
        },
        tokens=Tokens(
            pad="<pad>",
            bos="<s>",
            eos="</s>",
            adds_bos=True,
            named={"image_token": "<image_placeholder>"},
        ),
        image_token="<image_placeholder>",
        template=DEEPSEEK,
        images={"image_processor_type": "DeepseekVLImageProcessor", "size": SQUARE, "min_size": 4},
        processor={"processor_class": "DeepseekVLProcessor", "num_image_tokens": 4},
        said="User: {images} {prompt} \n\n Assistant:",
    ),
}
CHECKPOINTS["llava_next_video"] = _like(
    "llava_next",
    title="LLaVA-NeXT-Video",
    kind=T.LlavaNextVideoConfig,
    tokens=replace(LLAMA, special=("<image>", "<video>")),
    processor=CHECKPOINTS["llava_next"].processor | {"processor_class": "LlavaNextVideoProcessor"},
)
CHECKPOINTS["video_llava"] = _like(
    "llava",
    title="Video-LLaVA",
    kind=T.VideoLlavaConfig,
    tokens=replace(LLAMA, special=("<image>", "<video>")),
    images=CHECKPOINTS["llava"].images | {"image_processor_type": "VideoLlavaImageProcessor"},
    processor=CHECKPOINTS["llava"].processor | {"processor_class": "VideoLlavaProcessor"},
)
CHECKPOINTS["glm4v_moe"] = _like(
    "glm4v",
    title="GLM-4.5V",
    kind=T.Glm4vMoeConfig,
    more={
        "text_config": {
            "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0},
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        }
    },
)
CHECKPOINTS["glm_ocr"] = _like("glm46v", title="GLM-OCR", kind=T.GlmOcrConfig)
CHECKPOINTS["qianfan_ocr"] = _like(
    "internvl",
    title="Qianfan-OCR",
    kind=T.QianfanOCRConfig,
    more={"text_config": {"model_type": "qwen3"}},
    processor={
        "processor_class": "QianfanOCRProcessor",
        "image_seq_length": 4,
        "image_placeholder_token": "<IMG_CONTEXT>",
    },
)
CHECKPOINTS["lighton_ocr"] = _like(
    "mistral3",
    title="LightOnOCR",
    kind=T.LightOnOcrConfig,
    more={"text_config": {"model_type": "qwen3"}, "vision_feature_layer": None},
    tokens=replace(
        TEKKEN,
        named={
            "image_token": "[IMG]",
            "image_break_token": "[IMG_BREAK]",
            "image_end_token": "[IMG_END]",
        },
    ),
    processor=CHECKPOINTS["mistral3"].processor | {"processor_class": "LightOnOcrProcessor"},
    structural=(),
)
CHECKPOINTS["video_llama_3"] = _like(
    "qwen2_vl",
    title="VideoLLaMA 3",
    kind=T.VideoLlama3Config,
    more={
        "vision_config": {**TOWER, "patch_size": 4},
        "text_config": {"model_type": "qwen2", "rope_parameters": ROPE},
    },
    images=_qwen_images(4)
    | {"image_processor_type": "VideoLlama3ImageProcessor", "temporal_patch_size": 1},
    processor={"processor_class": "VideoLlama3Processor"},
)
CHECKPOINTS["exaone4_5"] = _like(
    "qwen2_5_vl",
    title="EXAONE 4.5",
    kind=T.Exaone4_5_Config,
    more={
        "vision_config": {
            **QWEN_TOWER,
            "num_key_value_heads": 1,
            "out_hidden_size": WIDTH,
            "window_size": 16,
            "fullatt_block_indexes": [2],
        },
        "text_config": {
            "model_type": "exaone4",
            "rope_parameters": ROPE,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    },
    processor={"processor_class": "Exaone4_5_Processor"},
)
CHECKPOINTS["cosmos3_omni"] = _like("qwen3_vl", title="Cosmos 3", kind=T.Cosmos3OmniConfig)
CHECKPOINTS["paddleocr_vl"] = _like(
    "qwen2_vl",
    title="PaddleOCR-VL",
    kind=T.PaddleOCRVLConfig,
    more={
        "vision_config": {**TOWER, "image_size": 16, "patch_size": 4},
        "image_token_id": "<|IMAGE_PLACEHOLDER|>",
        "vision_start_token_id": "<|IMAGE_START|>",
        "vision_end_token_id": "<|IMAGE_END|>",
    },
    tokens=Tokens(
        pad="<unk>",
        bos="<|begin_of_sentence|>",
        eos="</s>",
        named={"image_token": "<|IMAGE_PLACEHOLDER|>"},
        special=("<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>"),
    ),
    image_token="<|IMAGE_PLACEHOLDER|>",
    template=DEEPSEEK.replace(
        "<image_placeholder>", "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
    ),
    images={
        "image_processor_type": "PaddleOCRVLImageProcessor",
        "patch_size": 4,
        "size": {"shortest_edge": 64, "longest_edge": 4096},
    },
    processor={"processor_class": "PaddleOCRVLProcessor"},
    said=CHECKPOINTS["deepseek_vl"].said,
    structural=("<|IMAGE_START|>", "<|IMAGE_END|>"),
)
CHECKPOINTS["deepseek_vl_hybrid"] = _like(
    "deepseek_vl",
    title="DeepSeek-VL hybrid",
    kind=T.DeepseekVLHybridConfig,
    more={
        "high_res_vision_config": {
            **TOWER,
            "model_type": "sam_vision_model",
            "num_hidden_layers": 2,
            "output_channels": 8,
            "image_size": 32,
            "patch_size": 8,
            "mlp_dim": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
        }
    },
    images=CHECKPOINTS["deepseek_vl"].images
    | {
        "image_processor_type": "DeepseekVLHybridImageProcessor",
        "high_res_size": {"height": 32, "width": 32},
    },
    processor={"processor_class": "DeepseekVLHybridProcessor", "num_image_tokens": 4},
)
CHECKPOINTS["janus"] = _like(
    "deepseek_vl",
    title="Janus",
    kind=T.JanusConfig,
    more={
        "vision_config": {
            **TOWER,
            "image_size": 16,
            "patch_size": 8,
            "mlp_ratio": 1,
            "projection_dim": WIDTH,
            "num_image_tokens": 4,
        },
        "vq_config": {
            "num_embeddings": 16,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "projection_dim": WIDTH,
            "image_token_embed_dim": WIDTH,
        },
    },
    tokens=replace(
        CHECKPOINTS["deepseek_vl"].tokens,
        named={
            "image_token": "<image_placeholder>",
            "boi_token": "<begin_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
    images=CHECKPOINTS["deepseek_vl"].images | {"image_processor_type": "JanusImageProcessor"},
    processor={"processor_class": "JanusProcessor", "num_image_tokens": 4},
    structural=("<begin_of_image>", "<end_of_image>"),
)
CHECKPOINTS["aria"] = _like(
    "idefics2",
    title="Aria",
    kind=T.AriaConfig,
    more={
        "vision_config": {
            **SIGLIP,
            "model_type": "idefics3_vision",
            "image_size": 980,  # its processor makes no others
            "patch_size": 140,
        },
        "perceiver_config": None,
        "projector_patch_to_query_dict": {"49": 4},
        "text_config": {"model_type": "aria_text", "moe_num_experts": 4},
    },
    tokens=replace(
        CHECKPOINTS["idefics2"].tokens,
        named={"image_token": "<image>"},
        special=("<fim_prefix>", "<fim_suffix>"),
    ),
    template=CHECKPOINTS["idefics2"].template.replace("<image>", "<fim_prefix><image><fim_suffix>"),
    images={"image_processor_type": "AriaImageProcessor", "max_image_size": 980},
    processor={"processor_class": "AriaProcessor", "size_conversion": {"980": 4}},
    structural=("<fim_prefix>", "<fim_suffix>"),
    size=lambda w, h: 4,
)
CHECKPOINTS["gemma4"] = _like(
    "gemma3",
    title="Gemma 4",
    kind=T.Gemma4Config,
    more={
        "vision_config": {
            **TOWER,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 160,
        },
        "audio_config": None,
        "text_config": {
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "use_bidirectional_attention": "vision",
        },
        "image_token_id": "<|image|>",
        "boi_token_id": "<|image>",
        "eoi_token_id": "<image|>",
    },
    tokens=Tokens(
        pad="<pad>",
        bos="<bos>",
        eos="<turn|>",
        adds_bos=True,
        named={
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "image_token": "<|image|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
            "audio_token": "<|audio|>",
        },
        special=("<|turn>", "<|video|>"),
    ),
    image_token="<|image|>",
    template=GEMMA4,
    images={
        "image_processor_type": "Gemma4ImageProcessor",
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "max_soft_tokens": 70,
    },
    processor={
        "processor_class": "Gemma4Processor",
        "feature_extractor": {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
    },
    structural=("<|image>", "<image|>", "\n\n"),
    size=_soft,
)
EARS = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "d_model": 16}
EARS["output_dim"] = WIDTH
CHECKPOINTS["qwen2_5_omni_thinker"] = _like(
    "qwen2_5_vl",
    title="Qwen2.5-Omni thinker",
    kind=T.Qwen2_5OmniThinkerConfig,
    more={
        "audio_config": EARS,
        "image_token_id": "<|IMAGE|>",
        "video_token_id": "<|VIDEO|>",
        "audio_token_id": "<|AUDIO|>",
        "vision_start_token_id": "<|vision_bos|>",
        "vision_end_token_id": "<|vision_eos|>",
        "audio_start_token_id": "<|audio_bos|>",
        "audio_end_token_id": "<|audio_eos|>",
    },
    tokens=Tokens(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        named={
            "image_token": "<|IMAGE|>",
            "video_token": "<|VIDEO|>",
            "audio_token": "<|AUDIO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
        },
        special=("<|im_start|>",),
    ),
    image_token="<|IMAGE|>",
    template=QWEN2.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_bos|><|IMAGE|><|vision_eos|>"
    ),
    processor={
        "processor_class": "Qwen2_5OmniProcessor",
        "feature_extractor": {"feature_extractor_type": "WhisperFeatureExtractor"},
    },
    structural=("<|vision_bos|>", "<|vision_eos|>"),
)
CHECKPOINTS["qwen3_omni_moe_thinker"] = _like(
    "qwen3_vl_moe",
    title="Qwen3-Omni thinker",
    kind=T.Qwen3OmniMoeThinkerConfig,
    more={
        "audio_config": EARS,
        "audio_token_id": "<|audio_pad|>",
        "audio_start_token_id": "<|audio_start|>",
        "audio_end_token_id": "<|audio_end|>",
    },
    tokens=Tokens(
        pad="<|endoftext|>",
        eos="<|im_end|>",
        named={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "audio_token": "<|audio_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
        special=("<|im_start|>",),
    ),
    processor=CHECKPOINTS["qwen2_5_omni_thinker"].processor
    | {"processor_class": "Qwen3OmniMoeProcessor"},
)
CHECKPOINTS["qwen3_5_moe"] = _like(
    "qwen3_5",
    title="Qwen3.5-MoE",
    kind=T.Qwen3_5MoeConfig,
    more={
        "text_config": {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        }
    },
)
