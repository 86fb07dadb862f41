"""Training rows: one prefix (preamble and picture), then many independent question-answer turns.

Every turn sees the prefix and itself, never another turn, and its positions continue the prefix's.
A packed row is therefore exactly as many single-turn prompts that share their prefix: no answer can
be copied from an earlier turn, and the picture's cost is paid once for some twenty questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from training.minivlm import lessons
from training.minivlm.recipe import N_IMAGE_TOKENS, PREAMBLE
from visdepth_utils.data.worlds import questions as Q
from visdepth_utils.data.worlds.reasoning import STYLES, reason
from visdepth_utils.data.worlds.world import Scene

# How many turns of each task a row offers; what does not fit is left out after shuffling. Looking
# things up comes before choosing among options, and both before chains that are built of look-ups.
MIXES = {
    "find": {"caption": 1, "say": 8, "vqa": 9, "exists": 6, "mcq": 2},
    "lookups": {"caption": 1, "say": 4, "vqa": 6, "exists": 6, "mcq": 6, "short": 1, "long": 1},
    "all": {
        "caption": 2, "say": 1, "vqa": 5, "exists": 1, "mcq": 4, "direct": 2, "short": 2, "long": 2,
    },
    "chains": {"caption": 1, "vqa": 2, "mcq": 1, "direct": 2, "short": 3, "long": 3},
}  # fmt: skip
CHARTS_MIX = {"chart": 9, "chart_list": 1, "say": 4}
# Loss weight per token: a letter, or the answer that ends a chain, is not to be drowned by the rest
# of chains, most of which copies.
CHAIN_WEIGHT, CAPTION_WEIGHT, ANSWER_WEIGHT = 0.5, 1.0, 2.0


@dataclass
class Batch:
    """Packed rows. Shapes: (B, S) unless said otherwise; `image` (B,) is the bank index or -1."""

    ids: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor
    weights: torch.Tensor
    turns: torch.Tensor
    labels: list[list[Q.Question]]
    image: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on a device."""
        names = ("ids", "positions", "segments", "weights", "turns", "image")
        return replace(self, **{k: getattr(self, k).to(device) for k in names})

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive attention mask (B, 1, S, S): causal; a turn sees the prefix and itself."""
        seg = self.segments
        causal = torch.ones(seg.shape[1], seg.shape[1], dtype=torch.bool, device=seg.device).tril()
        allowed = (seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None])
        hidden = ~(allowed & causal)[:, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=seg.device).masked_fill(
            hidden, torch.finfo(dtype).min
        )


def _weight(question: Q.Question) -> float:
    if question.style != "direct":
        return CHAIN_WEIGHT
    return CAPTION_WEIGHT if question.task == "caption" else ANSWER_WEIGHT


def draw_turns(scene: Scene, rng: np.random.Generator, mix: str = "all") -> list[Q.Question]:
    """The shuffled turns of one row."""
    out: list[Q.Question] = []
    if scene.kind == "charts":
        for make in (Q.chart, lessons.chart_list, lessons.say):
            out += [make(scene, rng) for _ in range(CHARTS_MIX[make.__name__])]
    else:
        turns = MIXES[mix]
        for make in (Q.caption, lessons.say, Q.vqa, lessons.exists, Q.mcq):
            out += [make(scene, rng) for _ in range(turns.get(make.__name__, 0))]
        for style in STYLES:
            out += [reason(scene, rng, style)[0] for _ in range(turns.get(style, 0))]
    return [out[int(i)] for i in rng.permutation(len(out))]


@dataclass(frozen=True)
class Chat:
    """How a conversation is spelt with one tokenizer: the token ids around prompt and answer.

    `encode` turns texts into token ids. `head` stands before the picture, `before_answer` between
    prompt and answer, `end` after the answer. `spell` turns a text of the worlds into the text
    that is encoded.
    """

    encode: Callable[[list[str]], list[list[int]]]
    head: list[int]
    image: int
    before_answer: list[int]
    end: list[int]
    pad: int
    spell: Callable[[str], str] = str


def word_chat(tokenizer: PreTrainedTokenizerFast) -> Chat:
    """The conversation of the models whose vocabulary is the worlds' words."""
    bos, system, user, assistant, eos, image, pad = (
        tokenizer.convert_tokens_to_ids(t)
        for t in ("<bos>", "<system>", "<user>", "<assistant>", "<eos>", "<image>", "<pad>")
    )
    encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]  # noqa: E731
    head = [bos, system, *encode([PREAMBLE])[0], user]
    return Chat(encode, head, image, [assistant], [eos], pad)


def pack(
    scenes: list[Scene],
    images: list[int],
    modes: list[str],
    chat: Chat,
    length: int,
    rng: np.random.Generator,
    mix: str = "all",
) -> Batch:
    """Build a batch.

    Args:
        scenes: ground truth per row.
        images: index of each row's picture in the feature bank (used when the mode is "image").
        modes: per row "image", "text" (the scene in words stands for the picture) or "blind".
        chat: how prompts and answers are spelt and encoded.
        length: row length S in tokens.
        rng: source of the questions.
        mix: which of `MIXES` shapes worlds are asked.
    """
    shape = (len(scenes), length)
    ids, positions = np.full(shape, chat.pad), np.zeros(shape, dtype=np.int64)
    segments, turns = np.full(shape, -1), np.full(shape, -1)
    weights = np.zeros(shape, dtype=np.float32)
    kept: list[list[Q.Question]] = []
    for b, (scene, mode) in enumerate(zip(scenes, modes, strict=True)):
        prefix = list(chat.head)
        if mode == "image":
            prefix += [chat.image] * N_IMAGE_TOKENS
        elif mode == "text":
            prefix += chat.encode([chat.spell(lessons.describe(scene))])[0]
        at = len(prefix)
        ids[b, :at], positions[b, :at], segments[b, :at] = prefix, np.arange(at), 0
        start, kept_row = at, []
        questions = draw_turns(scene, rng, mix)
        prompts, references = (
            chat.encode([chat.spell(q.prompt) for q in questions]),
            chat.encode([chat.spell(q.reference) for q in questions]),
        )
        for question, prompt, reference in zip(questions, prompts, references, strict=True):
            asked = [*prompt, *chat.before_answer]
            turn = [*asked, *reference, *chat.end]
            answer, end = at + len(asked), at + len(turn)
            if end > length:
                continue
            k = len(kept_row)
            ids[b, at:end], segments[b, at:end] = turn, k + 1
            positions[b, at:end] = np.arange(start, start + len(turn))
            turns[b, answer:end] = k  # the tokens to be predicted
            weights[b, answer:end] = _weight(question)
            if question.style != "direct":  # "so the answer is X . <eos>"
                weights[b, end - 3] = ANSWER_WEIGHT
            kept_row.append(question)
            at = end
        kept.append(kept_row)
    row_images = [i if m == "image" else -1 for i, m in zip(images, modes, strict=True)]
    as_long = lambda a: torch.from_numpy(a.astype(np.int64))  # noqa: E731
    return Batch(
        as_long(ids), as_long(positions), as_long(segments), torch.from_numpy(weights),
        as_long(turns), kept,
        torch.tensor(row_images),
    )  # fmt: skip
