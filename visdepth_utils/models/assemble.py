"""Assemble a checkpoint whose decoder is not shipped: a GGUF file from the package index, and ours.

A folder with an ``assemble.json`` holds what was trained (projector, low-rank changes, the tower)
and says to which GGUF file it belongs. The two become a stock LLaVA folder in the user's cache,
once.
"""

import hashlib
import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from visdepth_utils.common.files import locked, read_object

MANIFEST = "assemble.json"
"""Keys: ``package``, ``file``, ``sha256`` of the decoder, ``install`` (the line that brings it),
``lora_alpha`` over rank as ``scale``."""
TRAINED = "trained.safetensors"
_LORA = re.compile(r"(.+)\.lora_A\.default\.weight")
_COPIED = ("config.json", "generation_config.json", "processor_config.json", "chat_template.jinja")


def cache_folder() -> Path:
    """Where assembled checkpoints lie: ``visdepth`` in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(home) / "visdepth"


def gguf_file(manifest: dict[str, Any]) -> Path:
    """The decoder's file within the installed package that a manifest names, checked by its hash.

    FileNotFoundError: no such package; the message is the line that installs it. ValueError: the
    file is not the one that the checkpoint belongs to.
    """
    name = str(manifest["file"])
    spec = importlib.util.find_spec(str(manifest["package"]))
    if spec is None or not spec.origin or importlib.util.find_spec("gguf") is None:
        raise FileNotFoundError(
            f"the pretrained decoder of this model is not installed; run: {manifest['install']}"
        )
    path = Path(spec.origin).parent / Path(name).name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; run: {manifest['install']}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != manifest["sha256"]:
        raise ValueError(
            f"{path} is another or a damaged file (sha256 {digest[:12]}..., the checkpoint belongs "
            f"to {manifest['sha256'][:12]}...); run: {manifest['install']} --force-reinstall"
        )
    return path


def read_decoder(path: Path) -> tuple[torch.nn.Module, PreTrainedTokenizerFast]:
    """The language model (float32) and its tokenizer from a GGUF file."""
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32), tokenizer


def join(decoder: torch.nn.Module, config: Any) -> LlavaForConditionalGeneration:
    """A LLaVA in float32 with a Llama-style decoder's weights; new words are the mean word.

    Tower and projector are drawn at random.
    """
    model = LlavaForConditionalGeneration(config)
    words = decoder.get_input_embeddings().weight.detach()
    more = config.text_config.vocab_size - len(words)
    state = decoder.model.state_dict()
    # A picture's token is replaced before the first layer; as an output, the mean word never wins.
    state["embed_tokens.weight"] = torch.cat([words, words.mean(0, keepdim=True).expand(more, -1)])
    model.model.language_model.load_state_dict(state)
    model.tie_weights()
    return model


@torch.no_grad()
def merge(
    model: LlavaForConditionalGeneration, trained: dict[str, torch.Tensor], scale: float = 2.0
) -> LlavaForConditionalGeneration:
    """Put trained tensors, by parameter name, into a model in place; A, B become W + scale B A.

    Low-rank pairs are named as by peft (``...lora_A.default.weight``); ``scale`` is alpha over
    rank. ValueError: a tensor belongs to no parameter.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in trained.items():
        pair = _LORA.fullmatch(name)
        if pair:
            down, up = tensor.float(), trained[f"{pair[1]}.lora_B.default.weight"].float()
            parameters[f"{pair[1]}.weight"] += scale * up @ down
        elif ".lora_B." not in name:
            if name not in parameters:
                raise ValueError(f"{name!r} is no parameter of the model it is to be put into")
            parameters[name].copy_(tensor)
    return model


def assembled(folder: Path) -> Path:
    """The stock checkpoint that a folder with an ``assemble.json`` stands for, made once.

    It lies in the user's cache, in hub format and bfloat16; its last two parts are those of
    ``folder``; other content makes another one. Raises as ``gguf_file``.
    """
    manifest = read_object(folder / MANIFEST)
    digest = hashlib.sha256()
    for name in (MANIFEST, TRAINED, *_COPIED):
        digest.update((folder / name).read_bytes())
    target = cache_folder() / digest.hexdigest()[:16] / Path(*folder.resolve().parts[-2:])
    with locked(target):  # two processes may ask for it at once
        if not target.is_dir():
            _write(folder, manifest, target)
    return target


def _write(folder: Path, manifest: dict[str, Any], target: Path) -> None:
    """Make the checkpoint beside its place, then move it there whole."""
    decoder, tokenizer = read_decoder(gguf_file(manifest))
    config = AutoConfig.from_pretrained(folder)
    model = join(decoder, config)
    merge(model, load_file(folder / TRAINED), manifest["scale"])
    new = target.with_name(f"{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    model.to(torch.bfloat16).eval().save_pretrained(new)
    with_image_token(tokenizer, config).save_pretrained(new)
    for name in _COPIED:
        shutil.copyfile(folder / name, new / name)
    new.replace(target)


def with_image_token(tokenizer: PreTrainedTokenizerFast, config: Any) -> PreTrainedTokenizerFast:
    """The decoder's tokenizer with the picture's token, padding on the left, no chat template.

    ValueError: the next free id is not the config's ``image_token_id``.
    """
    new = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **{name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token")},
        pad_token=tokenizer.convert_ids_to_tokens(config.pad_token_id),
        additional_special_tokens=["<image>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=config.text_config.max_position_embeddings,
    )
    got = new.convert_tokens_to_ids("<image>")
    if got != config.image_token_id:
        raise ValueError(f"<image> became token {got}, config.json says {config.image_token_id}")
    return new
