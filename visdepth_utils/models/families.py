"""What differs between families of vision language models, as data.

Everything the package does goes through the same hooks on ``model.get_decoder().layers``. The few
facts that are not uniform in transformers 5 live here and nowhere else, so that supporting a family
means adding a row, never a branch.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Family:
    """Facts about one model type."""

    model_type: str  # ``config.model_type`` of the checkpoint
    # Round or inside an image and neither image nor text (row tags, breaks, begin and end of
    # image). Names that the tokenizer does not know are skipped.
    structural_tokens: tuple[str, ...] = ()
    required_keys: tuple[str, ...] = ()  # of the processor; without them the pass is silently wrong
    # "1d": position ids are counted from the attention mask and passed explicitly, so that left
    # padding changes nothing; "model": the model must compute its own.
    positions: str = "1d"
    # The processor writes line feeds round images or between their rows; where they touch an image
    # they count as structural.
    blank_borders: bool = False
    nested_images: bool = False  # the processor wants one list of images per sample, not a flat one
    other_placeholder: bool = False  # the processor does not name the token features replace
    needs_image: bool = False  # the processor takes no sample without an image
    template: str = ""  # chat template where the hub's checkpoints have none
    least_image_tokens: int = 0  # of a sample's pictures, where transformers takes no less
    causal_prefix: bool = True  # False where image and prompt see each other in both directions
    deepstack: bool = False  # visual features are added again, see ``VLM.injection_layers``
    # The tokens of a square picture are one square grid in reading order; elsewhere tiles, row ends
    # or an overview are among them (Qwen's processors say the grid of each picture).
    square_grid: bool = False
    caveat: str = ""  # one sentence for reports
    # Entries of text_config that must be 0: name, transformers' default, what another value means.
    refused: tuple[tuple[str, int, str], ...] = ()


_qwen = partial(
    Family,
    structural_tokens=("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|video_pad|>"),
    required_keys=("mm_token_type_ids",),
    positions="model",
)
_qwen3 = partial(
    _qwen,
    deepstack=True,
    caveat="visual features are added again after the first layers, beside their own updates",
)
_idefics = partial(
    Family,
    structural_tokens=(
        "<fake_token_around_image>",
        "<global-img>",
        *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)),
    ),
    blank_borders=True,
    nested_images=True,
    caveat="an image is many spans with row tags between them",
)
_chatml = partial(Family, structural_tokens=_qwen.keywords["structural_tokens"])
_glm = partial(
    Family,
    structural_tokens=(
        *("<|begin_of_image|>", "<|end_of_image|>"),
        *("<|begin_of_video|>", "<|end_of_video|>", "<|video|>"),
    ),
    required_keys=("mm_token_type_ids",),
    positions="model",
)
_NO_KEYS = "linear-attention layers hold no keys that could be hidden"
_PER_LAYER = "its layers also get embeddings of the tokens, past the states that are replaced here"
_PIXTRAL_TOKENS = ("[IMG_BREAK]", "[IMG_END]")
_IMAGES_FIRST = (
    "{% for m in messages %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    "{% endfor %}"
)

_FAMILIES = (
    # Pixtral's checkpoints are of this type too; other tokenizers do not know its tokens.
    Family("llava", structural_tokens=_PIXTRAL_TOKENS, square_grid=True),
    Family(
        "llava_next", caveat="image_newline vectors sit inside the image span and count as image"
    ),
    Family(
        "llava_onevision",
        structural_tokens=("<video>",),
        nested_images=True,  # several images of one sample are not tiled
        caveat="image_newline vectors sit inside the image span and count as image",
    ),
    Family("internvl", structural_tokens=("<img>", "</img>")),
    _qwen("qwen2_vl"),
    _qwen("qwen2_5_vl"),
    _qwen3("qwen3_vl"),
    _qwen3("qwen3_vl_moe"),
    _qwen("qwen3_5", caveat=_NO_KEYS),
    _qwen("qwen3_5_moe", caveat=_NO_KEYS),
    _glm("glm4v"),
    _glm("glm46v"),
    _qwen3("cosmos3_omni"),
    _qwen3("qwen3_omni_moe_thinker", required_keys=()),
    Family(
        "qwen2_5_omni_thinker",
        structural_tokens=("<|vision_bos|>", "<|vision_eos|>", "<|VIDEO|>"),
        positions="model",
    ),
    _qwen("paddleocr_vl", structural_tokens=("<|IMAGE_START|>", "<|IMAGE_END|>")),
    _glm("glm4v_moe"),
    _glm("glm_ocr"),
    Family("vipllava"),
    Family("llava_next_video"),
    Family("video_llava", structural_tokens=("<video>",)),
    Family("qianfan_ocr", structural_tokens=("<img>", "</img>")),
    Family("lighton_ocr", structural_tokens=_PIXTRAL_TOKENS, least_image_tokens=1),
    _chatml("video_llama_3"),
    _chatml("exaone4_5"),
    Family("deepseek_vl"),
    Family("deepseek_vl_hybrid"),
    Family(
        "janus",
        structural_tokens=("<begin_of_image>", "<end_of_image>"),
        other_placeholder=True,
    ),
    Family("aria", structural_tokens=("<fim_prefix>", "<fim_suffix>")),
    Family(
        "gemma4",
        structural_tokens=("<|image>", "<image|>"),
        required_keys=("mm_token_type_ids",),
        blank_borders=True,
        nested_images=True,
        refused=(
            ("hidden_size_per_layer_input", 256, _PER_LAYER),
            ("num_kv_shared_layers", 0, "its last layers read the keys of earlier ones"),
        ),
        caveat="attention is bidirectional inside an image and mostly in sliding windows; E2B and "
        "E4B are refused, because their layers also get embeddings of the tokens",
    ),
    Family(
        "ovis2",
        other_placeholder=True,
        structural_tokens=("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
        caveat="image tokens are sums of visual words; tags between tiles are visual words too",
    ),
    _idefics("idefics2"),
    _idefics("idefics3"),
    _idefics("smolvlm"),
    Family(
        "gemma3",
        structural_tokens=("<start_of_image>", "<end_of_image>"),
        required_keys=("token_type_ids",),
        blank_borders=True,
        nested_images=True,
        square_grid=True,
        caveat="attention is bidirectional inside an image and mostly in sliding windows",
    ),
    Family(
        "paligemma",
        required_keys=("token_type_ids",),
        positions="model",
        needs_image=True,
        template=_IMAGES_FIRST,
        causal_prefix=False,
        square_grid=True,
        caveat="image and prompt see each other in both directions",
    ),
    Family("mistral3", structural_tokens=_PIXTRAL_TOKENS, least_image_tokens=2, square_grid=True),
    Family(
        "aya_vision",
        structural_tokens=(
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_LINE_BREAK|>",
            "TILE_GLOBAL",
            *(f"TILE_{i}" for i in range(1, 13)),
        ),
        caveat="three of four layers look back over a sliding window only",
    ),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _FAMILIES}


_CROSS = "an encoder reads its pictures and its decoder attends to that: no image token enters it"
_LINEAR = "its linear attention keeps no keys of single tokens that could be hidden"
_CONVOLUTION = "its short convolutions keep no keys of single tokens that could be hidden"
_VOCABULARY = "its pictures are words of its vocabulary, not features in the place of tokens"
_OWN_CODE = "it is code of its checkpoint, which is not run; transformers does not have it"
_NO_TOKEN = "its pictures enter by a mask of places; its config names no image token"
_CHOOSES = "an indexer chooses which keys its attention reads, which is not followed here"
_Q_FORMER = "its Q-Former reads the question too: image tokens are not the picture's alone"

UNSUPPORTED = {
    "blip": _CROSS,
    "blip-2": "its decoder, OPT or T5, has no rotary positions that depths could be run again with",
    "chameleon": _VOCABULARY,
    "diffusion_gemma": "it fills in blocks of text by diffusion, not token after token",
    "dots3_note": _CHOOSES,
    "emu3": _VOCABULARY,
    "ernie4_5_vl_moe": "its layers pick experts by whether a token is image, which is not followed",
    "evolla": "it reads proteins, not pictures",
    "florence2": _CROSS,
    "gemma3n": _PER_LAYER,
    "git": "its pictures are put before the text; no image token stands in its prompt",
    "glm5_next": _LINEAR,
    "granite4_vision": "features of pictures are added between its layers, which is not followed",
    "granite_docling": "its decoder scales all embeddings before its first layer",
    "idefics": "its pictures enter by cross-attention; no image token stands in its prompt",
    "instructblip": _Q_FORMER,
    "instructblipvideo": _Q_FORMER,
    "kosmos-2": _NO_TOKEN,
    "kosmos-2.5": _NO_TOKEN,
    "lfm2_vl": _CONVOLUTION,
    "lfm3_vl": _CONVOLUTION,
    "minicpm_ocr": _LINEAR,
    "minicpmv4_6": _LINEAR,
    "minicpmv4_7": _LINEAR,
    "minicpmv": _OWN_CODE,
    "mistral4": "it is a decoder alone: it reads no pictures",
    "mistral_large4": _CHOOSES,
    "mllama": "its pictures enter by cross-attention layers; no image token stands in its prompt",
    "nemotron_h_omni": _LINEAR.replace("linear attention keeps", "Mamba layers keep"),
    "phi4_multimodal": "it reads pictures by a LoRA adapter that lies beside the model",
    "phi4mm": _OWN_CODE,
    "pi0": "it says movements of a robot, not words",
    "pix2struct": _CROSS,
    "pp_formulanet": _CROSS,
    "qwen4_exp": _LINEAR,
    "shieldgemma2": "its processor writes the prompts itself, one for each of its policies",
    "t5gemma2": _CROSS,
    "udop": _CROSS,
    "vision-encoder-decoder": _CROSS,
}
"""Families that are asked for and cannot have a row: why."""


def family_of(config: dict[str, Any], name: str) -> Family:
    """The row of a checkpoint's family, by its config.json as it is read.

    ValueError: the family is not supported, with the reason; guessing its tokens would give wrong
    masks.
    """
    kind = config.get("model_type")
    why = f"its tokens and rules are not in {__name__}"
    if kind in FAMILIES:
        text = config.get("text_config") or {}
        found = [why for key, usual, why in FAMILIES[kind].refused if text.get(key, usual)]
        if not found:
            return FAMILIES[kind]
        why = found[0]
    elif kind in UNSUPPORTED:
        why = UNSUPPORTED[kind]
    elif "auto_map" in config:
        why = "it comes with code of its own, which is not run"
    elif "vision_config" not in config:
        why = "its config.json has no vision_config: it reads no pictures, or not by a tower"
    raise ValueError(
        f"{name!r}: family {kind!r} is not supported, because {why}; use one of the "
        f"{len(FAMILIES)} families of docs/families.md, such as llava, qwen2_5_vl or smolvlm"
    )
