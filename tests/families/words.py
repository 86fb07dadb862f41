"""Tokenizers for tiny checkpoints: a family's own special tokens, and few words beside them."""

import json
import re
from dataclasses import dataclass, field

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen3_5Tokenizer

from tests.tiny import WORDS

TEMPLATE_WORDS = (
    *("USER:", "ASSISTANT:", "User:", "Assistant:", "You", "are", "a", "helpful", "assistant."),
    *("model", "[INST]", "[/INST]", "<think>", "</think>"),
)
BLANKS = tuple("\n" * n for n in range(1, 6))


@dataclass(frozen=True)
class Tokens:
    """Special tokens of a family.

    Attributes:
        pad: Padding.
        bos: Begin of text, or none.
        eos: What ends an answer.
        adds_bos: Whether the tokenizer writes ``bos`` before every text.
        named: Those that the processor asks the tokenizer for by name.
        special: The other special ones.
        added: Added tokens that are not special.
        bytes: Byte pairs, for a family whose tokenizer class knows nothing else.
    """

    pad: str
    eos: str
    bos: str | None = None
    adds_bos: bool = False
    named: dict[str, str] = field(default_factory=dict)
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    bytes: bool = False

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Word-level, runs of line feeds being words; ``<unk>`` is for what it does not know."""
        if self.bytes:
            return self._of_bytes()
        given = (self.pad, "<unk>", *([self.bos] if self.bos else []), self.eos)
        names = dict.fromkeys((*given, *self.named.values(), *self.special))
        known = dict.fromkeys((*names, *self.added, *BLANKS, *TEMPLATE_WORDS, *WORDS))
        vocabulary = {word: i for i, word in enumerate(known)}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\n+"), "isolated"), pre_tokenizers.Split(" ", "removed")]
        )
        if self.adds_bos:
            core.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, vocabulary[self.bos])]
            )
        core.add_tokens(list(self.added))
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token=self.pad,
            unk_token="<unk>",
            bos_token=self.bos,
            eos_token=self.eos,
            extra_special_tokens=list(self.special),
            **self.named,
            model_input_names=["input_ids", "attention_mask"],
        )

    def _of_bytes(self) -> Qwen3_5Tokenizer:
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        texts = [f"{word}\n {word}" for word in (*TEMPLATE_WORDS, *WORDS)]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=400, show_progress=False, initial_alphabet=alphabet
        )
        core.train_from_iterator(texts, trainer)
        model = json.loads(core.to_str())["model"]
        return Qwen3_5Tokenizer(
            vocab=model["vocab"],
            merges=[tuple(pair) for pair in model["merges"]],
            pad_token=self.pad,
            unk_token=self.pad,
            eos_token=self.eos,
            extra_special_tokens=list(self.special),
        )


def words_of(text: str) -> list[str]:
    """What the tokenizer makes of a text without special tokens."""
    return re.findall(r"\n+|[^ \n]+", text)
