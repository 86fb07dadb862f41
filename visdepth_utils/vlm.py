"""Load a Hugging Face vision language model untouched, and check it before it is measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from visdepth_utils.datasets import Sample
from visdepth_utils.encoding import Encoded, encode
from visdepth_utils.families import FAMILIES, Family
from visdepth_utils.generation import generated, spoken
from visdepth_utils.models.checkpoints import locate, weights_hash
from visdepth_utils.models.checks import check
from visdepth_utils.models.loaders import (
    check_attention,
    choose_attention,
    copy_decoder,
    draw_model,
    drawn_bytes,
    read_config,
    read_model,
    read_processor,
)
from visdepth_utils.models.placement import (
    DeviceMap,
    check_fetched,
    check_memory,
    check_placement,
    home,
    offload_folder,
    on_cpu_only,
    reading_options,
    spread,
)
from visdepth_utils.models.portable import Recipe, reduce, remembered
from visdepth_utils.replay.parts import check_rope
from visdepth_utils.scoring import thinking_marks
from visdepth_utils.settings import SEEDS, check_device

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False, repr=False)
class VLM:
    """A model with what is needed to measure it.

    Attributes:
        model: The stock transformers model, in eval mode.
        processor: Its processor (left padding, PIL images).
        family: Facts about its family.
        image_token_id: Id of the placeholder that image features replace.
        device: Where it runs; of a model spread over several, where it takes its inputs.
        dtype: Of weights and states.
        name: For tables and figures.
        weights_hash: Sha256 over the weights' files and the random initialisation, if any.
        recipe: How ``load_vlm`` made it; None if something else did.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    family: Family
    image_token_id: int
    device: torch.device
    dtype: torch.dtype
    name: str
    weights_hash: str
    recipe: Recipe | None = None

    def __reduce__(self) -> tuple[Callable[[Recipe], "VLM"], tuple[Recipe]]:
        """Pickled as its recipe; see ``models.portable``."""
        return reduce(self)

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

        Args:
            samples: What to answer.
            max_new_tokens: Budget of one answer.
            batch_size: Samples at a time.
            progress: Called with (done, total, label).

        Returns:
            One answer per sample, without special tokens, stripped; see ``thinking``.
        """
        answers: list[str] = []
        for start in range(0, len(samples), batch_size):
            enc = self.encode(samples[start : start + batch_size])
            answers += spoken(self, generated(self, enc, max_new_tokens).tolist())
            if progress:
                progress(len(answers), len(samples), "generate")
        return answers


@remembered
def load_vlm(
    path_or_id: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    random_init: bool | Literal["decoder"] = False,
    init_std: float | None = None,
    seed: int = 0,
    attn: str = "auto",
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    load_in_4bit: bool = False,
) -> VLM:
    """Load a vision language model and check on a tiny image that it can be measured.

    Args:
        path_or_id: Folder (relative to the working directory, else to the repository) or hub id.
        device: ``"auto"`` is a CUDA device if there is one, else the CPU.
        dtype: ``"auto"`` is float32 on the CPU and the checkpoint's own elsewhere. Below float32
            the residual stream is rounded, which biases curvature upwards: 60 degrees read 63 in
            bf16 where a state is 100 times its update.
        revision: Of a hub id.
        random_init: True re-draws the whole model, ``"decoder"`` only the language model and its
            head, so that image tokens still enter as the trained tower and projector make them.
        init_std: Standard deviation of the re-drawn matrices; None is the config's own.
        seed: Of the re-drawing.
        attn: ``"sdpa"`` or ``"eager"``; others take no per-layer mask. ``"auto"`` is sdpa, or eager
            for a model without sdpa. What the checkpoint's config names is overwritten.
        trust_remote_code: Passed on.
        device_map: For a model larger than one device, instead of ``device``: ``"auto"`` or a dict
            of module names spreads its weights over GPUs, CPU and disk (accelerate). Results are
            those of one device; an untrained control is drawn in memory first.
        load_in_4bit: Weights in NF4 (bitsandbytes, extra ``4bit``). The model that is measured is
            then the rounded one.

    Returns:
        The checked model.

    Raises:
        FileNotFoundError: No such folder.
        MemoryError: No memory to draw an untrained control.
        ValueError: Not a vision language checkpoint of a known family in safetensors, a placement
            that this machine cannot serve, or a check failed.
    """
    if attn not in ("auto", "sdpa", "eager"):
        raise ValueError(f"attn={attn!r} takes no mask per layer: use 'sdpa' or 'eager'")
    if random_init not in (False, True, "decoder"):
        raise ValueError(f"random_init={random_init!r} is unknown: use False, True or 'decoder'")
    if init_std is not None and not random_init:
        raise ValueError(
            f"init_std={init_std} has no effect on trained weights: set random_init too"
        )
    if init_std is not None and not (isinstance(init_std, int | float) and init_std > 0):
        raise ValueError(f"init_std={init_std!r}: give a number above 0, or None")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed={seed!r}: give a whole number from 0 to {SEEDS - 1}")
    if load_in_4bit and random_init:
        raise ValueError("load_in_4bit rounds trained weights: draw a control without it")
    check_placement(device, device_map, load_in_4bit)
    if not isinstance(device, torch.device):
        check_device(device)
    where = locate(path_or_id)
    name = "/".join(Path(where).parts[-2:])
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    target = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    )
    on_cpu = target.type == "cpu" if device_map is None else on_cpu_only(device_map)
    if dtype == "auto" and on_cpu:
        dtype = torch.float32
    elif dtype != "auto" and isinstance(dtype, str):
        dtype = _dtype(dtype)

    config = read_config(str(path_or_id), where, **hub)
    family = FAMILIES[config.model_type]
    attn = choose_attention(config, attn)
    processor = read_processor(str(path_or_id), where, family.template, config, **hub)
    settings = ""
    if random_init:
        settings = f"random_init={random_init} init_std={init_std} seed={seed}"
        copies = 2 if random_init == "decoder" else 1
        check_memory(copies * drawn_bytes(config, dtype), str(path_or_id))
        model = drawn = draw_model(config, dtype, init_std, seed)
        name += " (random decoder)" if random_init == "decoder" else " (random init)"
    with offload_folder() as (folder, owners):
        if random_init is not True:
            options = (
                {} if random_init else reading_options(device_map, load_in_4bit, target, folder)
            )
            model = read_model(str(path_or_id), where, config, dtype, **options, **hub)
        check_attention(model, attn, str(path_or_id))
        if random_init == "decoder":
            copy_decoder(drawn, model)
            del drawn
        if random_init and device_map is not None:
            model = spread(model, device_map, folder)
        if device_map is not None:
            check_fetched(model)
            owners.append(model)
    if device_map is None and not load_in_4bit:
        model = model.to(target)
    vlm = VLM(
        model=model.requires_grad_(False),
        processor=processor,
        family=family,
        image_token_id=config.image_token_id,
        device=home(model, target),
        dtype=model.dtype,
        name=name + " (4 bit)" * load_in_4bit,
        weights_hash=weights_hash(
            where, settings + " load_in_4bit" * load_in_4bit, revision=revision
        ),
    )
    check(vlm)
    return vlm


def _dtype(name: str) -> torch.dtype:
    """``"float32"`` -> torch.float32, also by transformers' short names."""
    name = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(name, name)
    value = getattr(torch, name, None)
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(
            f"dtype={name!r} is unknown: use 'auto', 'float32', 'bfloat16' or 'float16'"
        )
    return value
