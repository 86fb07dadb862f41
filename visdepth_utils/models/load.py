"""Load a Hugging Face vision language model untouched, and check it before it is measured."""

import functools
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from visdepth_utils.common.devices import SEEDS, check_device
from visdepth_utils.models.checkpoints import locate, weights_hash
from visdepth_utils.models.checks import check
from visdepth_utils.models.families import FAMILIES
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
from visdepth_utils.models.reading import (
    check_attention,
    choose_attention,
    copy_decoder,
    draw_model,
    drawn_bytes,
    read_config,
    read_model,
    read_processor,
)
from visdepth_utils.models.vlm import VLM

# Weak: a model lives as long as something uses it, and two measurements of one model share it.
_LOADED: weakref.WeakValueDictionary[str, VLM] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Recipe:
    """How to load the same model again.

    ``where``: absolute folder, or hub id. ``options``: arguments of ``load_vlm``, as (name, value).
    ``weights_hash``: what must come out.
    """

    where: str
    options: tuple[tuple[str, Any], ...]
    weights_hash: str

    def load(self) -> VLM:
        """Load the model, or give the one this process has; ValueError: other weights."""
        key = repr(self)
        if (vlm := _LOADED.get(key)) is None:
            vlm = load_vlm(self.where, **dict(self.options))
            if vlm.weights_hash != self.weights_hash:
                raise ValueError(
                    f"{self.where!r} holds other weights here than where the measurement was "
                    "started: give all machines the same checkpoint"
                )
            _LOADED[key] = vlm
        return vlm


def remembered(load: Callable[..., VLM]) -> Callable[..., VLM]:
    """Make a loader, whose first argument is the folder or hub id, note its arguments in the model.

    So the model can be pickled.
    """

    @functools.wraps(load)
    def wrapped(*args: Any, **kwargs: Any) -> VLM:
        vlm = load(*args, **kwargs)
        given = inspect.signature(load).bind(*args, **kwargs).arguments
        where = locate(given.pop(next(iter(given))))
        if not given.get("device_map"):
            # Without index: on another machine, or in a worker that sees one GPU, it is another.
            given["device"] = vlm.device.type
        return replace(vlm, recipe=Recipe(where, tuple(sorted(given.items())), vlm.weights_hash))

    return wrapped


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
