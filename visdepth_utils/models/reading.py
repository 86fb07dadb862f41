"""Read and draw models, processors and configs: all that calls transformers' loaders."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import safe_open
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import cached_file, logging

from visdepth_utils.models.families import family_of
from visdepth_utils.models.no_videos import images_suffice
from visdepth_utils.models.prompts import drop_marks


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and warnings out of notebooks; what matters is checked instead."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    placing = logging.get_logger("accelerate")
    placing_level = placing.level
    placing.setLevel(logging.ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        placing.setLevel(placing_level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def one_line_errors(name: str, where: str, mend: str = "") -> Iterator[None]:
    """Turn a loader's failure, often many lines, into one line that names the checkpoint."""
    try:
        yield
    except Exception as error:
        first = " ".join(str(error).split()) or "no message"
        plain = isinstance(error, FileNotFoundError | ValueError) and "\n" not in str(error)
        if not plain or error.args[1:]:
            first = f"{type(error).__name__}: {first}"
        mend = mend or "check the folder's files"
        if not Path(where).is_dir():
            mend = "give a folder, or check the id and the connection"
            if constants.HF_HUB_OFFLINE:
                mend = (
                    "HF_HUB_OFFLINE is set and it is not in the cache: give a folder, or unset it"
                )
        if "trust_remote_code" in str(error):
            first = "it comes with code of its own, which is not run"
            mend = (
                "give a checkpoint of a family that transformers has (docs/families.md), or, if "
                "you trust the code, load_vlm(..., trust_remote_code=True)"
            )
        if "scaled_dot_product_attention" in str(error):
            mend = "load it with attn='eager', or leave attn out"
        if "num2words" in str(error):
            mend = "pip install num2words"
        if "torchvision" in str(error).lower():
            mend = "install torchvision, which the processor of this family needs"
        raise ValueError(f"cannot load {name!r} ({first[:300]}); {mend}") from error


def read_config(name: str, where: str, **hub: object) -> PreTrainedConfig:
    """Read the config of a checkpoint (``name``: as the user named it, ``where``: from ``locate``).

    What says how a model is run, not what it is, is overwritten (docs/checkpoints.md). ValueError:
    unreadable, quantised, in MLX's layout, without image token, or of an unsupported family.
    """
    with quiet(), one_line_errors(name, where):
        raw = PreTrainedConfig.get_config_dict(where, **hub)[0]
    if isinstance(raw, dict) and raw.get("model_type"):
        family_of(raw, name)  # first: no other advice helps
    with quiet(), one_line_errors(name, where):
        config = AutoConfig.from_pretrained(where, **hub)
    if packed := _packed(config, where):
        raise ValueError(
            f"{name!r} holds {packed}, which is not measured here: give the checkpoint that it was "
            "made from (load_in_4bit=True packs that one on a GPU)"
        )
    if getattr(config, "image_token_id", None) is None:
        raise ValueError(
            f"{name!r} (model type {config.model_type!r}) has no image token in its config: "
            "give a vision language checkpoint, whose config.json names image_token_id"
        )
    for part in _parts(config):
        part.return_dict, part.output_hidden_states, part.is_encoder_decoder = True, False, False
        part._output_attentions, part._experts_implementation = False, None
        for key in ("fusion_config", "use_pretrained_backbone"):
            vars(part).pop(key, None)
    return config


def _packed(config: PreTrainedConfig, where: str) -> str:
    """What kind of weights a checkpoint holds, if they are not plain ones; ""."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None) or {}
        found = found if isinstance(found, dict) else found.to_dict()
        method = str(getattr(found.get("quant_method"), "value", found.get("quant_method") or ""))
        if method and method != "bitsandbytes":
            return f"weights quantised by {method.upper():.40}"
        if found and not method or getattr(part, "quantization", None):
            return "weights quantised by MLX"
    first = next(iter(sorted(Path(where).glob("*.safetensors"))), None)
    with contextlib.suppress(Exception), safe_open(str(first), "pt") as weights:
        if (weights.metadata() or {}).get("format") == "mlx":
            return "weights in MLX's layout"
    return ""


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """A config and all configs within it."""
    yield config
    for key in config.sub_configs:
        if (part := getattr(config, key, None)) is not None:
            yield from _parts(part)


def choose_attention(config: PreTrainedConfig, attn: str) -> str:
    """Write the attention that we ask for over what a config and its parts name, and return it.

    ``"auto"`` is sdpa, unless a part of the model has none.
    """
    if attn == "auto":
        kinds = [MODEL_MAPPING.get(type(part), None) for part in _parts(config)]
        attn = "sdpa" if all(getattr(kind, "_supports_sdpa", True) for kind in kinds) else "eager"
    config._attn_implementation = attn  # its setter goes through the parts
    return attn


def check_attention(model: PreTrainedModel, attn: str, name: str) -> None:
    """Refuse, by a ValueError, a model any part of which runs another attention than ``attn``."""
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    found = {str(part.config._attn_implementation) for part in parts} - {attn}
    if found:
        raise ValueError(
            f"{name!r} runs {' and '.join(sorted(found))} attention where {attn} was asked for: "
            "its config.json names it in a place that is not known, take it out"
        )


def read_processor(
    name: str, where: str, template: str = "", config: PreTrainedConfig | None = None, **hub: object
) -> ProcessorMixin:
    """Read the processor, with left padding and the PIL image backend.

    torchvision resizes differently; with PIL no number depends on whether it is installed.
    ``template`` is for a family whose checkpoints come without one; the config says what the
    processor was saved without. ValueError: unreadable, or without chat template.
    """
    with quiet(), one_line_errors(name, where):
        optional = {"revision": hub.get("revision"), "_raise_exceptions_for_missing_entries": False}
        for part in ("processor_config.json", "audio_tokenizer_config.json"):
            file = cached_file(where, part, **optional)
            if file and "audio_tokenizer" in Path(file).read_text(encoding="utf-8"):
                raise ValueError(f"its {part} names an audio tokenizer, which is not fetched")
        with images_suffice():
            processor = AutoProcessor.from_pretrained(where, **hub)
        if not hasattr(processor, "image_processor"):
            raise ValueError(
                "its processor takes no images: processor files of a vision model are missing"
            )
        processor.image_processor = AutoImageProcessor.from_pretrained(where, backend="pil", **hub)
        tokenizer = processor.tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        drop_marks(tokenizer)
        processor.chat_template = _one_template(
            processor.chat_template or tokenizer.chat_template or template
        )
        if config is not None:
            _complete(processor, config, ProcessorMixin.get_processor_dict(where, **hub)[0])
    return processor


def _one_template(given: str | dict[str, str]) -> str:
    """The chat template itself, of several by name the default one."""
    named = given if isinstance(given, dict) else {"default": given}
    if len(named) == 1 or "default" in named:
        if found := named.get("default", next(iter(named.values()))):
            return found
        raise ValueError("its processor has no chat template: save one as chat_template.jinja")
    raise ValueError(
        f"its chat templates are {', '.join(named)}, none is the default: save one as "
        "chat_template.jinja"
    )


def _complete(processor: ProcessorMixin, config: PreTrainedConfig, saved: dict[str, Any]) -> None:
    """Fill in what a processor was saved without and the checkpoint's config determines."""
    tower = getattr(config, "vision_config", None)
    patch, size = getattr(tower, "patch_size", None), getattr(tower, "image_size", None)
    implied = {
        "patch_size": patch,
        "spatial_merge_size": getattr(config, "spatial_merge_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        # CLIP puts a token for the whole picture in front of its patches.
        "num_additional_image_tokens": int(getattr(tower, "model_type", "").startswith("clip")),
    }
    if isinstance(patch, int) and isinstance(size, int):
        implied["num_image_tokens"] = (size // patch) ** 2
    for key, value in implied.items():
        if hasattr(processor, key) and saved.get(key) is None and value is not None:
            setattr(processor, key, value)


def read_model(
    name: str, where: str, config: PreTrainedConfig, dtype: torch.dtype | str, **hub: object
) -> PreTrainedModel:
    """Read the weights (safetensors only) into the stock class, in eval mode.

    ``hub`` also says where to place and how to round the weights. ValueError: unreadable, or
    weights missing from the files or of the wrong shape.
    """
    mend = "check device_map, or leave it out" if hub.get("device_map") else ""
    with quiet(), one_line_errors(name, where, mend):
        model, info = AutoModelForImageTextToText.from_pretrained(
            where, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **hub
        )
    # A quiet load must not hide a half-loaded model: transformers only warns and draws the rest at
    # random.
    for key in ("missing_keys", "mismatched_keys"):
        if bad := sorted(map(str, info.get(key) or ())):
            raise ValueError(
                f"{name!r}: {len(bad)} weights are {key.split('_')[0]} (first {bad[0]}): "
                "the files do not fit config.json, fetch the checkpoint again"
            )
    return model.eval()


def draw_model(
    config: PreTrainedConfig, dtype: torch.dtype | str, std: float | None, seed: int
) -> PreTrainedModel:
    """Build the same architecture untrained, by transformers' own initialisation, in eval mode.

    Matrices are normal, norm weights neutral, biases 0 (a vision tower may have its own scheme).
    ``std`` None keeps each config's ``initializer_range``. torch's global generators are left as
    they were.
    """
    config = copy.deepcopy(config)
    if std is not None:
        for part in _parts(config):
            if hasattr(part, "initializer_range"):
                part.initializer_range = float(std)
        config.initializer_range = float(std)
    with quiet(), torch.random.fork_rng(devices=[]):
        # A checkpoint may itself have been trained from the draw of this small seed: use another.
        torch.manual_seed(seed + 1_592_589_312)
        kwargs = {} if dtype == "auto" else {"dtype": dtype}
        model = AutoModelForImageTextToText.from_config(config, **kwargs)
    return model.eval()


def drawn_bytes(config: PreTrainedConfig, dtype: torch.dtype | str) -> int:
    """Bytes of all weights that ``draw_model`` makes, without drawing anything."""
    kwargs = {} if dtype == "auto" else {"dtype": dtype}
    with quiet(), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config), **kwargs)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def copy_decoder(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Overwrite target's language model and output head by source's; tower and projector stay."""
    target.get_decoder().load_state_dict(source.get_decoder().state_dict())
    target.get_output_embeddings().load_state_dict(source.get_output_embeddings().state_dict())
