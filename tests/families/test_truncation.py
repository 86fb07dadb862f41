"""Truncation is exact in every family: all depths at once, by hooks, by dropping rows, naively."""

import pytest
import torch

from tests.families import naive
from tests.families.batches import Prompt, batch
from tests.families.models import NAMES, tiny_model
from visdepth_utils.measure import physical
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.patching.branches import (
    MODES,
    check_depths,
    kept_for_truncation,
    truncation,
)
from visdepth_utils.measure.patching.prefill import Index, prefill
from visdepth_utils.measure.patching.rerun import next_logits, rerun
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.vlm import VLM

CLOSE = 1e-5


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """Largest difference of two sets of logits, per 10 where logits are larger than that.

    One family's reach 21, and rounding grows with them; which kernel runs depends on the machine.
    """
    return float((one - two).abs().max() / max(1.0, float(two.abs().max()) / 10))


FEELS = 0.05  # what an intervention must move at least, or equality would prove nothing


def prompts_of(name: str) -> list[Prompt]:
    """Several images, images first and in the middle, different lengths."""
    if name == "paligemma":  # always one image, always first
        return [(-1, 5), (-1, 9)]
    return [(3, -1, 4, -2, 5), (-2, 6), (9, -1, 3)]


def plain(vlm: VLM, enc: Encoded) -> torch.Tensor:
    with torch.no_grad():
        return vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1).logits[:, -1]


def all_depths(vlm: VLM, enc: Encoded, mode: str) -> tuple[list[int], torch.Tensor]:
    """Depths, and logits (B, depths, V) from one rerun."""
    depths = check_depths(vlm, "all", mode)
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, mode))
    return depths, next_logits(pre, rerun(pre, truncation(pre, depths, mode)))


def by_hooks(vlm: VLM, enc: Encoded, depth: int, mode: str) -> torch.Tensor:
    with truncated(vlm, enc, depth, mode):
        return plain(vlm, enc)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_all_depths_at_once_equal_one_run_per_depth(name: str, mode: str) -> None:
    vlm, prompts = tiny_model(name), prompts_of(name)
    enc = batch(name, prompts)
    depths, together = all_depths(vlm, enc, mode)
    assert torch.equal(together[:, -1], plain(vlm, enc))  # d = L is the model, bit for bit
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        for i, depth in enumerate(depths):
            expected = naive.truncate(vlm, name, alone, depth, mode)[-1]
            assert apart(together[b, i], expected) <= CLOSE, (b, depth)
    moved = (together[:, :1] - together[:, -1:]).abs().amax(-1)
    assert float(moved.min()) > FEELS


@pytest.mark.parametrize("name", NAMES)
def test_other_states_can_stay_readable_in_the_place_of_the_images_own(name: str) -> None:
    vlm, prompts = tiny_model(name), prompts_of(name)
    enc = batch(name, prompts)
    depths = check_depths(vlm, "all", "freeze")
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, "freeze"))
    images = Index.of(enc.is_image)

    def turned(depth: int) -> torch.Tensor:
        return -2 * pre.state(depth, images).flip(-1)

    rows = truncation(pre, depths, "freeze", turned)
    together = next_logits(pre, rerun(pre, rows))
    assert torch.equal(together[:, -1], plain(vlm, enc))
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        for i, depth in enumerate(depths[:-1]):
            own = naive.layer_inputs(vlm, alone)[depth][alone.is_image[0]]
            frozen = -2 * own.flip(-1)
            expected = naive.truncate(vlm, name, alone, depth, "freeze", frozen)[-1]
            assert apart(together[b, i], expected) <= CLOSE, (b, depth)
            usual = naive.truncate(vlm, name, alone, depth, "freeze")[-1]
            assert apart(expected, usual) > 10 * CLOSE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_hooks_give_the_same_and_d_equal_to_l_is_the_model_bit_for_bit(
    name: str, mode: str
) -> None:
    vlm = tiny_model(name)
    enc = batch(name, prompts_of(name))
    depths, together = all_depths(vlm, enc, mode)
    for i, depth in enumerate(depths):
        found = by_hooks(vlm, enc, depth, mode)
        assert apart(found, together[:, i]) <= CLOSE, depth
    assert torch.equal(by_hooks(vlm, enc, vlm.n_layers, mode), plain(vlm, enc))
    mixed = [depths[i % len(depths)] for i in range(len(enc.is_image))]
    with truncated(vlm, enc, mixed, mode):
        rows = plain(vlm, enc)
    expected = torch.stack([together[b, depths.index(d)] for b, d in enumerate(mixed)])
    assert apart(rows, expected) <= CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_really_dropped_change_nothing_else(name: str) -> None:
    vlm, prompts = tiny_model(name), prompts_of(name)
    depths, together = all_depths(vlm, batch(name, prompts), "remove")
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        n_left = int((~alone.is_image).sum())
        for i, depth in enumerate(depths):
            _, logits, cache = physical.greedy(vlm, alone, depth, 1)
            assert apart(logits, together[b, i]) <= CLOSE, (b, depth)
            held = [layer.keys.shape[2] for layer in cache.layers]
            full = alone.is_image.shape[1]
            assert held == [full if at < depth else n_left for at in range(vlm.n_layers)]


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_only_give_keys_and_values_are_frozen(name: str) -> None:
    vlm, prompts = tiny_model(name), prompts_of(name)
    depths, together = all_depths(vlm, batch(name, prompts), "freeze")
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        full = alone.is_image.shape[1]
        for i, depth in enumerate(depths):
            ids, logits, cache = physical.greedy(vlm, alone, depth, 3, mode="freeze")
            assert apart(logits, together[b, i]) <= CLOSE, (b, depth)
            assert {layer.keys.shape[2] for layer in cache.layers} == {full + 2}

            def frozen(longer: Encoded, depth: int = depth) -> torch.Tensor:
                return naive.truncate(vlm, name, longer, depth, "freeze")

            assert ids == naive.answer(frozen, alone, name, 3)


@pytest.mark.parametrize("name", NAMES)
def test_some_of_the_rows_can_stay(name: str) -> None:
    vlm, prompts = tiny_model(name), prompts_of(name)
    first = check_depths(vlm, "all", "freeze")[0]
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        n, last = alone.is_image.shape[1], vlm.n_layers
        stay = alone.is_image[0] & (torch.arange(n) % 2 == 0)
        with physical.truncated_physically(vlm, alone, first + 1, stay=stay):
            found = plain(vlm, alone)
        gone = alone.is_image[0] & ~stay
        expected = naive.hide(vlm, alone, range(first + 1, last), gone, "all", n)[-1]
        assert apart(found, expected) <= CLOSE, b


@pytest.mark.parametrize("name", NAMES)
def test_depth_0_is_a_prompt_that_never_held_the_image(name: str) -> None:
    """The words alone go through the decoder, at the positions they had."""
    vlm, prompts = tiny_model(name), prompts_of(name)
    _, together = all_depths(vlm, batch(name, prompts), "remove")
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        text = ~alone.is_image[0]
        positions: list[torch.Tensor] = []
        decoder = vlm.model.get_decoder()
        handle = decoder.rotary_emb.register_forward_pre_hook(
            lambda _m, args, kwargs, to=positions: to.append(
                args[1] if len(args) > 1 else kwargs["position_ids"]
            ),
            with_kwargs=True,
        )
        plain(vlm, alone)
        handle.remove()
        at = text.nonzero()[:, 0]
        table = at[:, None] >= at
        if name == "paligemma":
            table = torch.ones_like(table)
        mask = torch.where(table, 0.0, -torch.inf)[None, None]
        if name == "gemma3":
            near = table & (at[:, None] - at < decoder.config.sliding_window)
            sliding = torch.where(near, 0.0, -torch.inf)[None, None]
            mask = {"full_attention": mask, "sliding_attention": sliding}
        with torch.no_grad():
            words = vlm.model.get_input_embeddings()(alone.inputs["input_ids"][:, text])
            state = decoder(
                inputs_embeds=words,
                attention_mask=mask,
                position_ids=positions[0][..., text],
                use_cache=False,
            ).last_hidden_state[0, -1]
            logits = vlm.model.get_output_embeddings()(state)
        assert apart(logits, together[b, 0]) <= CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_notice_its_batch_or_its_padding(name: str) -> None:
    vlm, prompts = tiny_model(name), prompts_of(name)
    for mode in MODES:
        _, together = all_depths(vlm, batch(name, prompts), mode)
        _, padded = all_depths(vlm, batch(name, prompts, pad=3), mode)
        assert apart(together, padded) <= CLOSE
        for b, prompt in enumerate(prompts):
            _, alone = all_depths(vlm, batch(name, [prompt], [b]), mode)
            assert apart(together[b], alone[0]) <= CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_eager_attention_is_served_as_well(name: str) -> None:
    sdpa, eager = tiny_model(name), tiny_model(name, "eager")
    enc = batch(name, prompts_of(name))
    for mode in MODES:
        depths, found = all_depths(eager, enc, mode)
        for i, depth in enumerate(depths):
            hooks = by_hooks(eager, enc, depth, mode)
            assert apart(hooks, found[:, i]) <= CLOSE
        _, other = all_depths(sdpa, enc, mode)
        assert apart(found, other) <= 1e-4  # another kernel rounds otherwise


def test_modes_are_different_experiments() -> None:
    vlm = tiny_model("llava")
    # With nothing before the image, closing up shifts all that is left alike, which RoPE ignores.
    enc = batch("llava", [(3, -1, 4, -2, 5), (9, -1, 3)])
    found = [all_depths(vlm, enc, mode)[1][:, 1] for mode in MODES]
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert float((one - other).abs().amax(-1).min()) > FEELS


def test_depths_inside_a_deepstack_range() -> None:
    """Removing is exact there; frozen rows would lose features that are still to come."""
    vlm = tiny_model("qwen3_vl")
    enc = batch("qwen3_vl", prompts_of("qwen3_vl"))
    assert check_depths(vlm, "all", "remove") == list(range(7))
    assert check_depths(vlm, "all", "freeze") == [3, 4, 5, 6]
    with pytest.raises(ValueError, match=r"depth 2 lies inside the layers 0..2.*use 3..6"):
        check_depths(vlm, [2], "freeze")
    with pytest.raises(ValueError, match="DeepStack"), truncated(vlm, enc, 1, "freeze"):
        pass
