"""The templated prompt of a sample: its words stay words, and it is the same on every day."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import date
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from tokenizers import normalizers
from transformers.utils import chat_template_utils

from visdepth_utils.data.images import BadRow
from visdepth_utils.data.samples import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from visdepth_utils.models.vlm import VLM

TEMPLATE_DATE = date(2025, 1, 1)
"""What a chat template is told that today is: a prompt must not change from day to day."""

_APART = "\U00100000"  # private use; a tokenizer drops it after it has looked for control tokens


def drop_marks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer, in place, read marked text as if it were not marked; see ``words_only``.

    It looks for control tokens in the text as given, and normalises what is between them. One that
    the tokenizers library does not run is left alone.
    """
    if (core := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        own = [core.normalizer] if core.normalizer else []
        core.normalizer = normalizers.Sequence([normalizers.Replace(_APART, ""), *own])


def non_text_ids(vlm: VLM) -> torch.Tensor:
    """Ids (K,) that are never text: specials, the family's structural tokens, the image token."""
    tokenizer = vlm.tokenizer
    ids = {vlm.image_token_id, *tokenizer.all_special_ids}
    ids |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    known = tokenizer.get_vocab()
    ids |= {known[token] for token in vlm.family.structural_tokens if token in known}
    return torch.tensor(sorted(ids))


def words_only(vlm: VLM) -> Callable[[str, str], str]:
    """How data is written so that it holds no control token: in it, ``</s>`` is four letters.

    Control tokens are those that the tokenizer cuts out of any text and that are never text, or
    stand in the chat template. The result takes (text, id of its sample) and gives the text, with a
    mark between the letters of every control token, which the tokenizer drops. It raises BadRow
    where the tokenizer makes the control token of the letters all the same.
    """
    tokenizer, never = vlm.tokenizer, set(non_text_ids(vlm).tolist())
    control = {
        token.content: i
        for i, token in tokenizer.added_tokens_decoder.items()
        if i in never or (token.content in vlm.processor.chat_template and token.content.strip())
    }
    longest_first = sorted((t for t in control if len(t) > 1), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    # A word that is not known is not known in any spelling.
    refused = set(control.values()) - {tokenizer.unk_token_id}

    def write(text: str, sample: str) -> str:
        found = list(dict.fromkeys(pattern.findall(text)))
        marked = text
        while pattern.search(marked):
            marked = pattern.sub(lambda match: _APART.join(match[0]), marked)
        if _APART in text or (
            found
            and (
                not hasattr(tokenizer, "backend_tokenizer")
                or refused.intersection(tokenizer(marked, add_special_tokens=False)["input_ids"])
            )
        ):
            what = ", ".join(map(repr, found)) or repr(_APART)
            raise BadRow(
                f"sample {sample!r}: its text contains {what}, which the tokenizer of {vlm.name} "
                "reads as a control token, not as text: take it out"
            )
        return marked

    return write


def prompts(vlm: VLM, samples: list[Sample], with_reference: bool) -> list[str]:
    """The templated prompts of samples, with their references if asked, for the model's processor.

    ValueError: the template fails. BadRow as ``words_only``.
    """
    write = words_only(vlm)
    texts = []
    for sample in samples:
        text = _templated(vlm, write(sample.prompt, sample.id), sample)
        if with_reference:
            # "ASSISTANT:" wants a space before the answer; a template that ends in a line feed or
            # in a special token does not.
            ends_special = any(text.endswith(token) for token in vlm.tokenizer.all_special_tokens)
            text += "" if text[-1:].isspace() or ends_special else " "
            text += write(sample.reference, sample.id)
        texts.append(text)
    return texts


def _templated(vlm: VLM, prompt: str, sample: Sample) -> str:
    """One prompt as the chat template writes it, with its date and its draws frozen."""
    content: list[dict[str, Any]] = [{"type": "image"} for _ in sample.images]
    content += [{"type": "text", "text": prompt}]
    failed, state = None, random.getstate()
    random.seed(0)  # a template may draw words
    clock = SimpleNamespace(now=lambda: TEMPLATE_DATE)
    try:
        with mock.patch.object(chat_template_utils, "datetime", clock):
            text = vlm.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        if str(content) not in text:
            return text
        why, text_only = "it writes the list of a message's parts as it is", True
    except Exception as error:  # a template is a program, and can fail as any does
        failed, why = error, f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        text_only = isinstance(error, TypeError) and '"list"' in why
    finally:
        random.setstate(state)
    mend = "fetch the checkpoint again, or mend its chat_template.jinja"
    if text_only:
        mend = (
            "it takes messages of text only; give it a chat_template.jinja that goes through the "
            "parts of a message (image, text)"
        )
    raise ValueError(
        f"the chat template of {vlm.name} fails on sample {sample.id!r} ({why}): {mend}"
    ) from failed
