"""Interventions: refusals name the input and the mend, and nothing stays on the model."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests import tiny
from visdepth_utils.measure import physical
from visdepth_utils.measure.interventions import substituted, truncated
from visdepth_utils.measure.patching.branches import check_depths, kept_for_truncation, truncation
from visdepth_utils.measure.patching.prefill import Index, prefill
from visdepth_utils.measure.substitution import substitution_grid
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.models.vlm import VLM


def plain_logits(vlm: VLM, enc) -> torch.Tensor:
    with torch.no_grad():
        return vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1).logits[:, -1]


def n_hooks(vlm: VLM) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks)
        for module in vlm.model.modules()
    )


@pytest.mark.parametrize(
    ("depths", "words"),
    [
        ([], "no depths given"),
        ([4], "depth 4 is not in 0..3"),
        ([-1], "depth -1 is not in 0..3"),
        ([1.5], "depth 1.5 is not in 0..3"),
        ([True], "depth True is not in 0..3"),
        ("some", "use 'all' or a list"),
    ],
)
def test_depths_that_cannot_be(llava: VLM, depths: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        truncation_sweep(llava, [tiny.sample(0)], depths=depths, max_new_tokens=1)


def test_depths_are_sorted_and_without_repeats(llava: VLM) -> None:
    assert check_depths(llava, [3, 0, 3]) == [0, 3]
    assert check_depths(llava, "all") == [0, 1, 2, 3]


def test_a_sample_without_an_image_is_named(llava: VLM) -> None:
    samples = [tiny.sample(0), replace(tiny.sample(1), images=())]
    with pytest.raises(ValueError, match="sample 's1' has no image tokens"):
        truncation_sweep(llava, samples, max_new_tokens=1)
    with pytest.raises(ValueError, match="sample 's1' has no image tokens"):
        substitution_grid(llava, samples, controls=(), max_new_tokens=1)
    enc = llava.encode(samples)
    with pytest.raises(ValueError, match="'s1'"), truncated(llava, enc, 1):
        pass


@pytest.mark.parametrize("mode", ["hide", "", "Remove"])
def test_unknown_modes_are_refused(llava: VLM, mode: str) -> None:
    with pytest.raises(ValueError, match="use remove, renumber, freeze"):
        truncation_sweep(llava, [tiny.sample(0)], mode=mode, max_new_tokens=1)


def test_physical_is_for_removal_only(llava: VLM) -> None:
    with pytest.raises(ValueError, match="'masked' only"):
        truncation_sweep(
            llava, [tiny.sample(0)], mode="freeze", implementation="physical", max_new_tokens=1
        )
    with pytest.raises(ValueError, match="use 'masked' or 'physical'"):
        truncation_sweep(llava, [tiny.sample(0)], implementation="fast", max_new_tokens=1)


def test_freezing_and_substituting_inside_deepstack_is_refused(
    llava: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VLM, "injection_layers", range(2))
    with pytest.raises(ValueError, match=r"depth 1 lies inside the layers 0\.\.1 .* use 2\.\.3"):
        check_depths(llava, [1, 3], "freeze")
    assert check_depths(llava, "all", "freeze") == [2, 3]
    assert check_depths(llava, "all", "remove") == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"would get them twice; use layers 2\.\.2"):
        substitution_grid(llava, [tiny.sample(0)], layers=[1, 2], controls=(), max_new_tokens=1)


def test_attention_without_masks_is_refused(llava: VLM) -> None:
    config = llava.model.get_decoder().config
    kind = config._attn_implementation
    config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(ValueError, match="'flash_attention_2' attention, which takes no mask"):
            truncation_sweep(llava, [tiny.sample(0)], max_new_tokens=1)
    finally:
        config._attn_implementation = kind


def blocks(vlm: VLM, enc) -> list[Callable]:
    where = enc.is_image
    states = torch.zeros(*where.shape, vlm.hidden_size)
    return [
        *(lambda m=m: truncated(vlm, enc, 1, m) for m in ("remove", "renumber", "freeze")),
        lambda: substituted(vlm, enc, 1, where, states),
        lambda: physical.truncated_physically(vlm, enc, 1),
    ]


def test_every_block_changes_the_model_and_leaves_nothing_behind(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0)])
    before, hooks = plain_logits(llava, enc), n_hooks(llava)
    for block in blocks(llava, enc):
        with block():
            assert n_hooks(llava) > hooks
            assert not torch.allclose(plain_logits(llava, enc), before, atol=1e-4)
        assert n_hooks(llava) == hooks
        assert torch.equal(plain_logits(llava, enc), before)


def test_hooks_go_after_an_error_too(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0)])
    hooks = n_hooks(llava)
    for block in blocks(llava, enc):
        with pytest.raises(RuntimeError, match="on purpose"), block():
            raise RuntimeError("on purpose")
        assert n_hooks(llava) == hooks

    def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("on purpose")

    handle = llava.layers[1].register_forward_pre_hook(broken)
    try:
        with pytest.raises(RuntimeError, match="on purpose"):
            prefill(llava, enc, enc.is_image)
    finally:
        handle.remove()
    assert n_hooks(llava) == hooks


def test_another_batch_inside_a_block_is_refused(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0)])
    two = llava.encode([tiny.sample(0), tiny.sample(1)])
    longer = llava.encode([tiny.sample(0, words=9)])
    for block in blocks(llava, enc)[:4]:
        with block(), pytest.raises(ValueError, match="run the batch that it was opened with"):
            plain_logits(llava, two)
    for block in (blocks(llava, enc)[2], blocks(llava, enc)[3]):
        with block(), pytest.raises(ValueError, match="tokens were run, the batch has"):
            plain_logits(llava, longer)
    with pytest.raises(ValueError, match="1 depths for 2 rows"), truncated(llava, two, [1]):
        pass


def test_rows_are_dropped_only_where_images_stand_at_the_same_places(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0), tiny.sample(1, words=9)])
    with (
        pytest.raises(ValueError, match="run one sample at a time"),
        physical.truncated_physically(llava, enc, 1),
    ):
        pass
    with pytest.raises(ValueError, match="one sample at a time"):
        physical.greedy(llava, enc, 1, 2)


def test_full_depth_inside_a_block_is_the_plain_model_bit_for_bit(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0), tiny.sample(1, words=9)])
    before = plain_logits(llava, enc)
    for mode in ("remove", "renumber", "freeze"):
        with truncated(llava, enc, llava.n_layers, mode):
            assert torch.equal(plain_logits(llava, enc), before)


def test_physical_removal_holds_fewer_keys(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0)])
    n, n_image = enc.is_image.shape[1], int(enc.is_image.sum())
    _, _, cache = physical.greedy(llava, enc, 1, 4)
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths == [n + 3, n - n_image + 3, n - n_image + 3]


def test_an_index_keeps_order_and_marks_empty_slots() -> None:
    mask = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 1, 0]]).bool()
    index = Index.of(mask)
    assert index.at[0].tolist() == [1, 2, 4]
    assert index.valid.tolist() == [[True, True, True], [False, False, True]]
    assert index.at[1, -1] == 3
    values = torch.arange(10.0).view(2, 5, 1)
    assert index.take(values)[0, :, 0].tolist() == [1, 2, 4]


def test_states_of_tokens_come_back_in_place(llava: VLM) -> None:
    enc = llava.encode([tiny.sample(0), tiny.sample(1, words=9)])
    pre = prefill(llava, enc, kept_for_truncation(llava, enc, "freeze"))
    with torch.no_grad():
        hidden = llava.model(**enc.inputs, output_hidden_states=True).hidden_states
    index = Index.of(enc.is_image)
    assert torch.equal(pre.state(1, index)[0], hidden[1][0][enc.is_image[0]])
    text = truncation(pre, [0]).moved
    short = pre.state(2, text)[0][text.valid[0]]
    behind = (enc.is_image[0].long().cumsum(0) > 0) & ~enc.is_image[0]
    assert torch.equal(short, hidden[2][0][behind])
