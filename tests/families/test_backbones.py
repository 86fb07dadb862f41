"""What a config says about its text backbone is followed in any family: exact, or refused."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as T

from tests import tiny
from tests.families import naive
from tests.families.batches import batch
from tests.families.models import IMAGE, MROPE, QWEN_IDS, QWEN_TOWER, SIGLIP, TEXT, WIDTH, wide
from tests.families.test_truncation import CLOSE, all_depths, apart, plain, prompts_of
from visdepth_utils.measure import physical
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.patching.branches import (
    MODES,
    image_spans,
    kept_for_truncation,
    truncation,
)
from visdepth_utils.measure.patching.decoding import greedy
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.measure.patching.rerun import next_logits, rerun
from visdepth_utils.models.generation import generated
from visdepth_utils.models.load import load_vlm
from visdepth_utils.models.reading import choose_attention
from visdepth_utils.models.vlm import VLM


@cache
def paligemma2() -> VLM:
    """Gemma 2 as the text backbone: capped logits, capped attention, every other layer sliding."""
    text = {**TEXT, "model_type": "gemma2", "query_pre_attn_scalar": 8, "sliding_window": 64}
    config = T.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": WIDTH},
        text_config={**text, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
        image_token_index=IMAGE,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    choose_attention(config, "eager")
    torch.manual_seed(1)
    return wide(T.PaliGemmaForConditionalGeneration(config), "paligemma", "eager")


@cache
def deepstack(taken: int) -> VLM:
    """Qwen3-VL that adds the features of some layers of its tower again."""
    tower = {**QWEN_TOWER, "depth": 5, "out_hidden_size": WIDTH, "num_position_embeddings": 16}
    tower |= {"deepstack_visual_indexes": list(range(taken))}
    text = {**TEXT, "num_hidden_layers": 6, "rope_parameters": MROPE}
    torch.manual_seed(1)
    config = T.Qwen3VLConfig(vision_config=tower, text_config=text, **QWEN_IDS)
    return wide(T.Qwen3VLForConditionalGeneration(config), "qwen3_vl")


def llava_over(model_type: str, **more: Any) -> VLM:
    """LLaVA over another text backbone."""
    config = T.LlavaConfig(
        vision_config=SIGLIP,
        text_config={**TEXT, "model_type": model_type, **more},
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    attention = choose_attention(config, "auto")
    torch.manual_seed(1)
    return wide(T.LlavaForConditionalGeneration(config), "llava", attention)


def exact(vlm: VLM, name: str, mode: str) -> None:
    """All depths equal naive runs, one sample and depth each."""
    prompts = prompts_of(name)[:2]
    enc = batch(name, prompts)
    depths, together = all_depths(vlm, enc, mode)
    assert apart(together[:, -1], plain(vlm, enc)) == 0
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        for i, depth in enumerate(depths):
            expected = naive.truncate(vlm, name, alone, depth, mode)[-1]
            assert apart(together[b, i], expected) <= CLOSE, (b, depth)
    if mode == "remove":  # the image matters, or equality would prove nothing
        assert float((together[:, 0] - together[:, -1]).abs().max()) > 0.05


@pytest.mark.parametrize("mode", MODES)
def test_logits_that_the_model_caps_are_capped_in_sweeps(mode: str) -> None:
    vlm = paligemma2()
    exact(vlm, "paligemma", mode)
    enc = batch("paligemma", prompts_of("paligemma")[:1])
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, mode))
    logits = next_logits(pre, rerun(pre, truncation(pre, [vlm.n_layers - 1], mode)))
    assert 2 < float(logits.abs().max()) <= 3
    if mode == "remove":
        _, first, _ = physical.greedy(vlm, enc, 1, 2)
        assert apart(first, naive.truncate(vlm, "paligemma", enc, 1, mode)[-1]) <= CLOSE


@pytest.mark.parametrize("taken", [0, 2, 5])
def test_deepstack_is_as_deep_as_the_config_says(taken: int) -> None:
    vlm = deepstack(taken)
    assert list(vlm.injection_layers) == list(range(taken))
    for mode in ("remove", "freeze"):
        exact(vlm, "qwen3_vl", mode)


@pytest.mark.parametrize("kind", ["phi", "gpt_oss"])
def test_other_backbones_are_exact_where_they_can_be_reached(kind: str) -> None:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 64}
    vlm = llava_over(kind, **(experts if kind == "gpt_oss" else {}))
    for mode in MODES:
        exact(vlm, "llava", mode)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 2}, "its layers of conv keep no"),
        (
            "qwen3_next",
            {"layer_types": ["linear_attention", "full_attention"] * 2, "num_experts": 2},
            "its layers of linear_attention keep no",
        ),
        ("gpt_neox", {}, "text backbone 'gpt_neox' has no past_key_values, by which"),
    ],
)
def test_backbones_that_cannot_be_reached_are_refused_by_name(
    kind: str, more: dict[str, Any], message: str
) -> None:
    vlm, enc = llava_over(kind, **more), batch("llava", prompts_of("llava"))
    runs = (
        lambda: prefill(vlm, enc, enc.is_image),
        lambda: truncated(vlm, enc, 1).__enter__(),
        lambda: physical.truncated_physically(vlm, enc, 1).__enter__(),
    )
    for run in runs:
        with pytest.raises(ValueError, match=message):
            run()


def test_an_image_at_the_end_of_the_prompt_is_refused() -> None:
    vlm, enc = llava_over("llama"), batch("llava", [(3, -1)])
    for run in (
        lambda: image_spans(enc),
        lambda: kept_for_truncation(vlm, enc, "remove"),
        lambda: truncated(vlm, enc, 1).__enter__(),
    ):
        with pytest.raises(ValueError, match="sample 'number 0' ends with an image token"):
            run()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_depend_on_the_batch_are_refused(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
        rope["original_max_position_embeddings"] = 16
    words = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0, eos_token_id=3))
    backbone = "phi3" if kind == "longrope" else "llama"
    vlm = llava_over(backbone, rope_parameters=rope, max_position_embeddings=16)
    vlm = replace(vlm, processor=words)
    enc = batch("llava", [(3, -1, 4)])  # 11 tokens
    assert generated(vlm, enc, 5).shape[1] <= 5
    with pytest.raises(ValueError, match=rf"11 tokens, and 6 may follow: beyond 16, {kind} rotary"):
        generated(vlm, enc, 6)
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, "remove"))
    done = rerun(pre, truncation(pre, [1], "remove"))
    with pytest.raises(ValueError, match="and 6 may follow"):
        greedy(pre, done, next_logits(pre, done), 6)
    with pytest.raises(ValueError, match="and 6 may follow"):
        physical.greedy(vlm, enc, 1, 6)


def test_a_model_without_sdpa_runs_eager_and_says_so_where_sdpa_is_asked_for(
    tmp_path: Path,
) -> None:
    folder = tiny.llava(tmp_path / "capped", backbone="gemma2")
    vlm = load_vlm(folder)
    assert vlm.model.get_decoder().config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="load it with attn='eager', or leave attn out"):
        load_vlm(folder, attn="sdpa")
