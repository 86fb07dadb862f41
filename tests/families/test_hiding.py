"""Hiding image tokens by layer, reader and share is exact in every family, against a naive loop."""

import pytest
import torch

from tests.families import naive
from tests.families.batches import batch
from tests.families.models import NAMES, tiny_model
from tests.families.test_truncation import CLOSE, FEELS, all_depths, apart, plain, prompts_of
from visdepth_utils.measure.hiding import Hide, attention_of_last, visible
from visdepth_utils.measure.patching.branches import READERS, hiding, reached
from visdepth_utils.measure.patching.decoding import greedy
from visdepth_utils.measure.patching.prefill import Prefill, prefill
from visdepth_utils.measure.patching.rerun import Rerun, next_logits, rerun
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.vlm import VLM

STEPS = 3


def variants(last: int) -> list[list[Hide]]:
    """Every reader, windows at both ends and in the middle; every rule; in the order of layers."""
    shares = [Hide(1, share=0.5, rule=rule) for rule in ("stride", "norm", "attention", "random")]
    some = [Hide(a, b, r) for r in READERS for a, b in ((0, 2), (1, last - 1), (last - 1, None))]
    return [sorted(some, key=lambda v: v.depth), [*shares, Hide(2, 4, "answer", 0.25)]]


def together(vlm: VLM, enc: Encoded, asked: list[Hide]) -> tuple[Prefill, torch.Tensor, Rerun]:
    """The plain pass, what stays visible (B, R, S), and all interventions in one rerun."""
    pre = prefill(vlm, enc, reached(vlm, enc, enc.is_image))
    attention = attention_of_last(vlm, enc)
    stays = torch.stack([visible(pre, v, attention) for v in asked], 1)
    until = [vlm.n_layers if v.to is None else v.to for v in asked]
    rows = hiding(
        pre,
        [v.depth for v in asked],
        until,
        enc.is_image[:, None] & ~stays,
        [v.readers for v in asked],
    )
    return pre, stays, rerun(pre, rows)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_all_at_once_equal_one_run_per_intervention(name: str, shares: bool) -> None:
    vlm, prompts = tiny_model(name), prompts_of(name)
    asked = variants(vlm.n_layers)[shares]
    enc = batch(name, prompts)
    pre, stays, done = together(vlm, enc, asked)
    logits = next_logits(pre, done)
    assert float((logits - plain(vlm, enc)[:, None]).abs().amax(-1).max()) > FEELS
    answers = greedy(pre, done, logits, STEPS)
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        n = alone.is_image.shape[1]
        for r, v in enumerate(asked):
            to = vlm.n_layers if v.to is None else v.to
            gone = alone.is_image[0] & ~stays[b, r, -n:]

            def run(longer: Encoded, v: Hide = v, to: int = to, gone=gone, n: int = n):
                return naive.hide(vlm, longer, range(v.depth, to), gone, v.readers, n)

            assert apart(logits[b, r], run(alone)[-1]) <= CLOSE, (b, v)
            assert answers[b][r] == naive.answer(run, alone, name, STEPS), (b, v)


@pytest.mark.parametrize("name", NAMES)
def test_hiding_all_from_all_to_the_end_is_removal(name: str) -> None:
    vlm = tiny_model(name)
    enc = batch(name, prompts_of(name))
    depths, removed = all_depths(vlm, enc, "remove")
    pre, _, done = together(vlm, enc, [Hide(d) for d in depths])
    assert apart(next_logits(pre, done), removed) <= CLOSE


@pytest.mark.parametrize("name", NAMES)
def test_attention_of_the_last_token_is_what_the_model_says(name: str) -> None:
    vlm, eager = tiny_model(name), tiny_model(name, "eager")
    enc = batch(name, prompts_of(name))
    ours = attention_of_last(vlm, enc)
    with torch.no_grad():
        out = eager.model(**enc.inputs, use_cache=False, output_attentions=True)
    theirs = torch.stack([layer[:, :, -1].mean(1) for layer in out.attentions])
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(ours.sum(-1), torch.ones(ours.shape[:2]), atol=1e-5)
    assert torch.equal(plain(vlm, enc), plain(vlm, enc))  # its attention is its own again
    assert vlm.model.get_decoder().config._attn_implementation == "sdpa"
