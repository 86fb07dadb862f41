"""A loaded model with what is needed to measure it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from visdepth_utils.common.progress import Progress
from visdepth_utils.common.thinking import thinking_marks
from visdepth_utils.data.samples import Sample
from visdepth_utils.models.encoding import Encoded, encode
from visdepth_utils.models.families import Family
from visdepth_utils.models.generation import decode_answers, generated
from visdepth_utils.models.parts import check_rope

if TYPE_CHECKING:
    from visdepth_utils.models.load import Recipe


@dataclass(frozen=True, eq=False, repr=False)
class VLM:
    """A model with what is needed to measure it."""

    model: PreTrainedModel  # the stock transformers model, in eval mode
    processor: ProcessorMixin  # with left padding and PIL images
    family: Family
    image_token_id: int  # of the placeholder that image features replace
    device: torch.device  # where it runs; of a model spread over several, where it takes its inputs
    dtype: torch.dtype  # of weights and states
    name: str  # for tables and figures
    weights_hash: str  # sha256 over the weights' files and the random initialisation, if any
    recipe: Recipe | None = None  # how ``load_vlm`` made it; None if something else did

    def __reduce__(self) -> tuple[Callable[[], VLM], tuple[()]]:
        """Pickled as its recipe: a few words instead of gigabytes."""
        if self.recipe is None:
            raise ValueError(
                f"{self!r} cannot be sent to another process: only a model made by load_vlm can, "
                "because the other process loads it again"
            )
        return self.recipe.load, ()

    def __repr__(self) -> str:
        """One line instead of every module of the model."""
        dtype = str(self.dtype).removeprefix("torch.")
        facts = (self.name, self.family.model_type, f"{self.n_layers} layers", self.device, dtype)
        return f"VLM({', '.join(map(str, facts))})"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def layers(self) -> torch.nn.ModuleList:
        """Decoder layers 0..L-1."""
        return self.model.get_decoder().layers

    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def injection_layers(self) -> range:
        """Decoder layers after which visual features are added again (DeepStack)."""
        if not self.family.deepstack:
            return range(0)
        tower = self.model.config.vision_config
        taken = [i for i in range(tower.depth) if i in tower.deepstack_visual_indexes]
        return range(min(len(taken), self.n_layers))

    @property
    def hidden_size(self) -> int:
        """D, the width of a state."""
        return self.model.config.get_text_config().hidden_size

    @cached_property
    def thinking(self) -> tuple[str, str]:
        """Marks of a block of thinking: that which every prompt leaves open, and that of any.

        Outputs start with the first, so that they can be read alone: a block that an answer does
        not close is no answer. "" where there is none.
        """
        asked = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        try:
            prompt = self.processor.apply_chat_template(asked, add_generation_prompt=True)
        except Exception:  # ``encode`` says what is wrong with it
            return "", ""
        return thinking_marks(str(prompt), str(self.processor.chat_template))

    def encode(self, samples: Sequence[Sample], with_reference: bool = False) -> Encoded:
        """Samples to a left-padded batch with masks; see ``encoding.encode``."""
        enc = encode(self, samples, with_reference)
        check_rope(self, enc)
        return enc

    def generate(
        self,
        samples: Sequence[Sample],
        max_new_tokens: int,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> list[str]:
        """Answer greedily, whatever a checkpoint sets as its own defaults.

        One answer per sample, without special tokens, stripped; see ``thinking``. Progress is
        called with (done, total, label).
        """
        answers: list[str] = []
        for start in range(0, len(samples), batch_size):
            enc = self.encode(samples[start : start + batch_size])
            answers += decode_answers(self, generated(self, enc, max_new_tokens).tolist())
            if progress:
                progress(len(answers), len(samples), "generate")
        return answers
