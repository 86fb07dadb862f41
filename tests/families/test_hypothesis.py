"""Exactness for prompts, batches, paddings and depths that nobody thought of."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families import naive
from tests.families.batches import Prompt, batch
from tests.families.models import NAMES, tiny_model
from tests.families.test_truncation import CLOSE, apart, by_hooks
from visdepth_utils.measure.patching.branches import (
    MODES,
    check_depths,
    kept_for_truncation,
    moved_tokens,
    replaceable,
    substitution,
    truncation,
)
from visdepth_utils.measure.patching.decoding import greedy
from visdepth_utils.measure.patching.prefill import Index, prefill
from visdepth_utils.measure.patching.rerun import next_logits, rerun

WORDS = st.integers(1, 9)
PICTURE = st.sampled_from([-1, -2])
SETTINGS = settings(max_examples=40, deadline=None)


@st.composite
def prompts(draw: st.DrawFn, name: str) -> list[Prompt]:
    """One to three samples: words or nothing first, up to three images, words last."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        if name == "paligemma":
            found.append((-1, draw(WORDS)))
            continue
        parts = [draw(WORDS)] if draw(st.booleans()) else []
        for _ in range(draw(st.integers(1, 3))):
            parts.append(draw(PICTURE))
            if draw(st.booleans()):
                parts.append(draw(WORDS))
        found.append((*parts, draw(WORDS)))
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple:
    """A family, a batch of it, and which sample is looked at."""
    name = draw(st.sampled_from(NAMES))
    chosen = draw(prompts(name))
    seeds = draw(
        st.lists(st.integers(0, 500), min_size=len(chosen), max_size=len(chosen), unique=True)
    )
    enc = batch(name, chosen, seeds, pad=draw(st.integers(0, 3)))
    b = draw(st.integers(0, len(chosen) - 1))
    return tiny_model(name), name, enc, b, batch(name, [chosen[b]], [seeds[b]])


@SETTINGS
@given(cases(), st.sampled_from(MODES), st.data())
def test_truncation_equals_a_naive_run(case: tuple, mode: str, data: st.DataObject) -> None:
    vlm, name, enc, b, alone = case
    every = check_depths(vlm, "all", mode)
    depths = sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, mode))
    done = rerun(pre, truncation(pre, depths, mode))
    logits = next_logits(pre, done)
    said = greedy(pre, done, logits, 3)
    i = data.draw(st.integers(0, len(depths) - 1))

    def logits_of(longer: object) -> torch.Tensor:
        return naive.truncate(vlm, name, longer, depths[i], mode)

    assert apart(logits_of(alone)[-1], logits[b, i]) <= CLOSE
    assert apart(by_hooks(vlm, enc, depths[i], mode)[b], logits[b, i]) <= CLOSE
    assert naive.answer(logits_of, alone, name, 3) == said[b][i]


@SETTINGS
@given(cases(), st.sampled_from(["image", "text"]), st.data())
def test_substitution_equals_a_naive_run(case: tuple, modality: str, data: st.DataObject) -> None:
    vlm, _, enc, b, alone = case
    first = len(vlm.injection_layers) if modality == "image" else 0
    pairs = st.tuples(st.integers(first, vlm.n_layers - 1), st.integers(0, vlm.n_layers - 1))
    chosen = sorted(data.draw(st.sets(pairs, min_size=1, max_size=4)))
    where = replaceable(enc, modality)
    pre = prefill(vlm, enc, moved_tokens(vlm, enc, where))
    states = [pre.state(source_layer, Index.of(where)) for _, source_layer in chosen]
    rows = substitution(pre, [layer for layer, _ in chosen], states, modality)
    logits = next_logits(pre, rerun(pre, rows))
    i = data.draw(st.integers(0, len(chosen) - 1))
    layer, source_layer = chosen[i]
    own = replaceable(alone, modality)[0]
    expected = naive.substitute(
        vlm, alone, layer, own, naive.layer_inputs(vlm, alone)[source_layer]
    )
    assert apart(expected[-1], logits[b, i]) <= CLOSE
