"""The embedded models' architecture, tokenizer and processor: stock LLaVA classes only.

SigLIP vision tower (64x64 pixels, 8x8 patches -> 64 image tokens), two-layer projector, Llama
decoder. Sizes differ in the decoder alone; the tower is trained once and shared, as LLaVAs share
CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from training.minivlm import lessons
from visdepth_utils.data.worlds import questions as Q
from visdepth_utils.data.worlds.reasoning import reason
from visdepth_utils.data.worlds.world import SIZE, draw_scene

PATCH = 8
N_IMAGE_TOKENS = (SIZE // PATCH) ** 2
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>", "<system>", "<user>", "<assistant>")
# Long enough that preamble + prompt + reference hold at least 64 text tokens: geometry compares
# image and text at a matched number of tokens, and there are 64 image tokens.
PREAMBLE = (
    "the picture shows objects or a chart . all objects are small or large , and all have one "
    "colour and one shape . the place of an object is top , middle or bottom , then left , center "
    "or right . a chart has bars from left to right . read the picture , then answer ."
)
CHAT_TEMPLATE = (
    "{{ '<bos><system> ' }}"
    "{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] %}"
    "{% if first is string %}{{ first }}"
    "{% else %}{% for part in first %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% set messages = messages[1:] %}{% else %}{{ '" + PREAMBLE + "' }}{% endif %}"
    "{% for message in messages %}"
    "{{ ' <user> ' if message['role'] == 'user' else ' <assistant> ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image> ' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ ' <eos>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Decoder size: depth, width, attention heads, MLP width."""

    layers: int
    width: int
    heads: int
    mlp: int


SIZES = {"small": Size(8, 128, 4, 384), "base": Size(12, 192, 4, 512)}
TOWER = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 512,
}


def vocabulary(n_scenes: int = 3000) -> list[str]:
    """All words of worlds and questions, sorted, without numbers (they are spelt by digits)."""
    words: set[str] = set()
    for seed in range(n_scenes):
        for kind, makers in (
            ("shapes", (Q.caption, lessons.say, Q.vqa, lessons.exists, Q.mcq)),
            ("charts", (Q.chart, lessons.chart_list)),
        ):
            scene, rng = draw_scene(seed, kind), np.random.default_rng(seed)
            questions = [make(scene, rng) for make in makers]
            questions += reason(scene, rng) if kind == "shapes" else []
            for q in questions:
                words.update((q.prompt + " " + q.reference + " " + lessons.describe(scene)).split())
    return sorted(w for w in words if not w.isdigit())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level: every word is one token; numbers are spelt digit by digit (47: 4, ##7)."""
    words = sorted(set(vocabulary()) | set(PREAMBLE.split()))
    digits = [str(d) for d in range(10)] + [f"##{d}" for d in range(10)]
    vocab = {token: i for i, token in enumerate([*SPECIALS, *digits, *words])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<system>", "<user>", "<assistant>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer, chat template, PIL image processor: pixels do not depend on torchvision."""
    images = SiglipImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=0,
    )


def build_model(
    size: str, seed: int, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """An untrained model of a size, drawn from a seed."""
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}: use one of {', '.join(SIZES)}")
    s = SIZES[size]
    ids = {k: tokenizer.convert_tokens_to_ids(f"<{k}>") for k in ("pad", "bos", "eos", "image")}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=s.width,
        intermediate_size=s.mlp,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.heads,
        head_dim=s.width // s.heads,
        max_position_embeddings=1024,
        # As Llama 3: more of each head is free to match content over the whole prompt.
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        pad_token_id=ids["pad"],
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
    )
    vision = SiglipVisionConfig(image_size=SIZE, patch_size=PATCH, vision_use_head=False, **TOWER)
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=ids["image"],
        image_seq_length=N_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        pad_token_id=ids["pad"],
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    # Words start at the size of a layer's writes, not at a fiftieth of it: so they stay readable in
    # the residual stream.
    nn.init.normal_(model.get_input_embeddings().weight)
    model.generation_config.pad_token_id = ids["pad"]
    model.generation_config.bos_token_id = ids["bos"]
    model.generation_config.eos_token_id = ids["eos"]
    return model
