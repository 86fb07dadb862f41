"""Tiny random checkpoints with real processors, saved in the layout of the hub."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from visdepth_utils.data.tasks import Sample
from visdepth_utils.models.reading import quiet

WORDS = tuple(
    word
    for line in (
        "system user assistant you are a careful helper look at the picture and answer in few",
        "words what is colour shape of red green blue circle square star left right how many",
        "one two three ? . : it yes no",
    )
    for word in line.split()
)

TEMPLATE = (
    "{{ bos_token }}system : you are a careful helper . "
    "{% for m in messages %}{{ m['role'] }} : "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE {% else %}"
    "{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer(image_token: str | None, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Word-level tokenizer that adds a BOS token, with the image token as a special token."""
    specials = ["<pad>", "<unk>", "<s>", "</s>", *((image_token,) if image_token else ()), *extra]
    vocab = {word: i for i, word in enumerate([*specials, *dict.fromkeys(WORDS)])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[token for token in (image_token, *extra) if token],
        model_input_names=["input_ids", "attention_mask"],
    )


def llava(
    folder: Path,
    *,
    size: int = 32,
    patch: int = 8,
    layers: int = 3,
    width: int = 32,
    image_token: str | None = "<image>",
    processor_patch: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    stops: int | list[int] = 3,
    backbone: str = "llama",
) -> Path:
    """LLaVA with a SigLIP tower: (size / patch)^2 image tokens, ``layers`` text layers."""
    words = tokenizer(image_token)
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": size,
            "patch_size": patch,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vision_use_head": False,
        },
        text_config={
            "model_type": backbone,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(words),
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
            "initializer_range": 0.1,
        },
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).to(dtype)
    model.generation_config.eos_token_id = stops
    with quiet():
        model.save_pretrained(folder)
    images = SiglipImageProcessorPil(size={"height": size, "width": size})
    LlavaProcessor(
        image_processor=images,
        tokenizer=words,
        patch_size=processor_patch or patch,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", image_token or "picture"),
    ).save_pretrained(folder)
    return folder


def qwen(
    folder: Path, *, layers: int = 3, width: int = 32, most_tokens: int = 16, seed: int = 0
) -> Path:
    """Qwen2.5-VL with its own processor: M-RoPE, 4 to ``most_tokens`` image tokens by size."""
    words = tokenizer("<|image_pad|>", ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>"))
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": width,
            "patch_size": 14,
            "fullatt_block_indexes": [1],
        },
        text_config={
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(words),
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
            },
            "initializer_range": 0.1,
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        image_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
        video_token_id=7,
    )
    with quiet():
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    # One file per part, as on the hub; the processor class itself is made when it is read.
    words.save_pretrained(folder)
    size = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * most_tokens}
    Qwen2VLImageProcessorPil(size=size).save_pretrained(folder)
    template = TEMPLATE.replace("IMAGE", "<|vision_start|> <|image_pad|> <|vision_end|>")
    (folder / "chat_template.jinja").write_text(template)
    return folder


def picture(seed: int, size: int = 32) -> Image.Image:
    """A noise picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sample(index: int, images: int = 1, words: int = 6, reference: str = "red circle") -> Sample:
    """A sample whose prompt has ``words`` words and which shows ``images`` pictures."""
    rng = np.random.default_rng(1000 + index)
    return Sample(
        id=f"s{index}",
        image_id=f"i{index}",
        images=tuple(picture(10 * index + k) for k in range(images)),
        prompt=" ".join(rng.choice(WORDS, words)),
        reference=reference,
        answer=reference,
        task="vqa",
    )
