"""States of another layer: all pairs at once equal one full run per pair, in every family."""

import pytest
import torch

from tests.families import naive
from tests.families.batches import batch
from tests.families.models import NAMES, tiny_model
from tests.families.test_truncation import CLOSE, FEELS, apart, plain, prompts_of
from visdepth_utils.measure.interventions import substituted
from visdepth_utils.measure.patching.branches import (
    check_layers,
    moved_tokens,
    replaceable,
    substitution,
)
from visdepth_utils.measure.patching.decoding import greedy
from visdepth_utils.measure.patching.prefill import Index, prefill
from visdepth_utils.measure.patching.rerun import next_logits, rerun

STEPS = 10


def layers_of(vlm, modality):
    first = len(vlm.injection_layers) if modality == "image" else 0
    return list(range(first, vlm.n_layers))


def grid(vlm, enc, modality, steps=0):
    """Pairs (layer, source_layer), logits (B, pairs, V), and greedy tokens if asked for."""
    where = replaceable(enc, modality)
    pre = prefill(vlm, enc, moved_tokens(vlm, enc, where))
    target = Index.of(where)
    layers = layers_of(vlm, modality)
    pairs = [(b, a) for b in layers for a in layers]
    states = [pre.state(a, target) for _, a in pairs]
    done = rerun(pre, substitution(pre, [b for b, _ in pairs], states, modality))
    logits = next_logits(pre, done)
    return pairs, logits, greedy(pre, done, logits, steps) if steps else None


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_all_pairs_at_once_equal_one_run_per_pair(name, modality):
    vlm, prompts = tiny_model(name), prompts_of(name)
    enc = batch(name, prompts)
    pairs, together, _ = grid(vlm, enc, modality)
    usual = plain(vlm, enc)
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        states = naive.layer_inputs(vlm, alone)
        where = replaceable(alone, modality)[0]
        for i, (layer, source_layer) in enumerate(pairs):
            expected = naive.substitute(vlm, alone, layer, where, states[source_layer])[-1]
            assert apart(together[b, i], expected) <= CLOSE, (b, layer, source_layer)
            gap = apart(together[b, i], usual[b])
            if layer == source_layer:
                assert gap <= CLOSE  # a layer's own states are the identity
    last = [
        i
        for i, (layer, source_layer) in enumerate(pairs)
        if source_layer == pairs[-1][1] - 1 == layer - 1
    ]
    moved = float((together[:, last] - usual[:, None]).abs().max())
    assert moved > (FEELS if modality == "text" else 0)
    assert apart(together, usual[:, None]) > FEELS


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_hooks_give_the_same_and_own_states_change_no_bit(name, modality):
    vlm = tiny_model(name)
    enc = batch(name, prompts_of(name))
    pairs, together, _ = grid(vlm, enc, modality)
    where = replaceable(enc, modality)
    pre = prefill(vlm, enc, moved_tokens(vlm, enc, where))
    index = Index.of(where)
    for i, (layer, source_layer) in enumerate(pairs):
        states = torch.zeros(*where.shape, vlm.hidden_size)
        states[where] = pre.state(source_layer, index)[index.valid]
        with substituted(vlm, enc, layer, where, states):
            found = plain(vlm, enc)
        assert apart(found, together[:, i]) <= CLOSE, (layer, source_layer)
        if layer == source_layer:
            assert torch.equal(found, plain(vlm, enc))


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_after_a_substitution(name, modality):
    """New tokens read plain keys below the layer and the new ones from it on."""
    vlm, prompts = tiny_model(name), prompts_of(name)[:2]
    pairs, _, found = grid(vlm, batch(name, prompts), modality, STEPS)
    some = [i for i, (layer, source_layer) in enumerate(pairs) if layer + source_layer in (3, 4, 7)]
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        states = naive.layer_inputs(vlm, alone)
        where = replaceable(alone, modality)[0]
        for i in some:
            layer, source_layer = pairs[i]

            def logits_of(enc, layer=layer, source_layer=source_layer, states=states, where=where):
                more = enc.is_image.shape[1] - len(where)
                here = torch.cat([where, torch.zeros(more, dtype=torch.bool)])
                full = torch.cat([states[source_layer], torch.zeros(more, vlm.hidden_size)])
                return naive.substitute(vlm, enc, layer, here, full)

            assert found[b][i] == naive.answer(logits_of, alone, name, STEPS), pairs[i]


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_padding_and_batch_change_nothing(name, modality):
    vlm, prompts = tiny_model(name), prompts_of(name)
    _, together, _ = grid(vlm, batch(name, prompts, pad=3), modality)
    for b, prompt in enumerate(prompts):
        _, alone, _ = grid(vlm, batch(name, [prompt], [b]), modality)
        assert apart(together[b], alone[0]) <= CLOSE


def test_image_states_below_the_last_deepstack_layer_are_refused():
    vlm = tiny_model("qwen3_vl")
    with pytest.raises(ValueError, match=r"would get them twice; use layers 3\.\.5"):
        check_layers(vlm, [2, 4], "image")
    assert check_layers(vlm, [0, 4], "text") == [0, 4]
