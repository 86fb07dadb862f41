"""Plain instructions for the pretrained decoder: so that tuning leaves it a language model.

The decoder answers them itself before it is tuned; in every step of the training it is held to what
it would have said (the divergence from the untouched decoder on these texts).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

_ASKS = (
    "Explain in simple words how {} works.",
    "Write a short story in which {} plays a part.",
    "Give three useful tips about {}.",
    "What should a beginner know about {}?",
    "Write a friendly letter to a friend about {}.",
    "What are the good and the bad sides of {}?",
    "Summarise the history of {} in a few sentences.",
    "Make a list of questions that a child might ask about {}.",
)
_ABOUT = (
    "a bicycle", "bread", "the tides", "a library", "chess", "rain", "a lighthouse", "tea",
    "gardening", "the postal service", "a violin", "winter", "a volcano", "the railway", "honey",
    "photography", "a market", "sleep", "the moon", "a bridge", "swimming", "paper", "friendship",
    "a small shop", "electric light", "birds in autumn", "cooking for guests", "a map", "glass",
    "learning a language", "a clock", "the sea",
)  # fmt: skip
# The measure of what tuning does to it: perplexity on these paragraphs, which are in no training.
HELD_OUT = Path(__file__).with_name("held_out_text.txt")


def prompts() -> list[str]:
    """The instructions, in a fixed order in which neighbours are about different things."""
    return [
        ask.format(about)
        for shift in range(len(_ASKS))
        for i, about in enumerate(_ABOUT)
        for ask in (_ASKS[(i + shift) % len(_ASKS)],)
    ]


@torch.no_grad()
def replies(
    decoder: Any, tokenizer: Any, target: Path, n: int = 160, tokens: int = 112, batch: int = 32
) -> list[list[int]]:
    """Token ids of instructions with the untouched decoder's own replies, sampled once and kept.

    Args:
        decoder: The causal language model.
        tokenizer: Its tokenizer, with its own chat template.
        target: JSON file in which they are kept.
        n: How many.
        tokens: Length of a reply, at most.
        batch: Replies at a time.
    """
    if target.exists():
        return json.loads(target.read_text())
    out: list[list[int]] = []
    torch.manual_seed(0)
    tokenizer.padding_side = "left"
    for at in range(0, n, batch):
        asked = [[{"role": "user", "content": p}] for p in prompts()[at : min(at + batch, n)]]
        inputs = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        made = decoder.generate(**inputs, max_new_tokens=tokens, do_sample=True, temperature=0.8)
        start = inputs["input_ids"].shape[1]
        for ids, mask in zip(made, inputs["attention_mask"], strict=True):
            reply = ids[start:].tolist()
            if tokenizer.eos_token_id in reply:
                reply = reply[: reply.index(tokenizer.eos_token_id) + 1]
            out.append(ids[:start][mask.bool()].tolist() + reply)
    target.write_text(json.dumps(out))
    return out


@torch.no_grad()
def perplexity(decode: Any, head: torch.Tensor, tokenizer: Any, text: str | None = None) -> float:
    """Perplexity of the held-out paragraphs, each read alone.

    Args:
        decode: Maps token ids (1, S) to final hidden states (1, S, D).
        head: Weights of the output head (V, D).
        tokenizer: Encodes the text.
        text: Another text; paragraphs are parted by empty lines.
    """
    total, count = 0.0, 0
    for paragraph in (text or HELD_OUT.read_text()).strip().split("\n\n"):
        ids = torch.tensor(tokenizer(paragraph, add_special_tokens=False)["input_ids"])
        logits = decode(ids[None])[0, :-1].float() @ head.float().T
        total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
        count += len(ids) - 1
    return float(torch.tensor(total / count).exp())
