"""Greedy answers at all depths at once equal those of one full run per depth and token."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

from tests.families import naive
from tests.families.batches import batch
from tests.families.models import NAMES, tiny_model
from tests.families.test_truncation import prompts_of
from visdepth_utils.measure import physical
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.patching.branches import (
    MODES,
    check_depths,
    kept_for_truncation,
    truncation,
)
from visdepth_utils.measure.patching.decoding import greedy
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.measure.patching.rerun import next_logits, rerun

STEPS = 11


def answers(vlm, enc, mode, stop=(), steps=STEPS):
    """Depths, and tokens by sample and depth."""
    depths = check_depths(vlm, "all", mode)
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, mode))
    done = rerun(pre, truncation(pre, depths, mode))
    return depths, greedy(pre, done, next_logits(pre, done), steps, stop)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_every_depth_says_what_a_run_of_its_own_says(name, mode):
    vlm, prompts = tiny_model(name), prompts_of(name)[:2]
    depths, found = answers(vlm, batch(name, prompts), mode)
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        for i, depth in enumerate(depths):
            expected = naive.answer(
                lambda enc, d=depth: naive.truncate(vlm, name, enc, d, mode), alone, name, STEPS
            )
            assert found[b][i] == expected, (b, depth)
    assert len({tuple(row) for sample in found for row in sample}) > 2  # there is much to confuse


@pytest.mark.parametrize("name", NAMES)
def test_dropping_rows_says_the_same(name):
    vlm, prompts = tiny_model(name), prompts_of(name)
    depths, found = answers(vlm, batch(name, prompts), "remove")
    for b, prompt in enumerate(prompts):
        alone = batch(name, [prompt], [b])
        for i, depth in enumerate(depths):
            assert physical.greedy(vlm, alone, depth, STEPS)[0] == found[b][i], (b, depth)


@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_generate_says_the_same_under_hooks(name):
    vlm = tiny_model(name)
    for mode in MODES:
        enc = batch(name, prompts_of(name))
        depths, found = answers(vlm, enc, mode)
        for i, depth in enumerate(depths):
            inputs = {k: v for k, v in enc.inputs.items() if k != "position_ids"}
            with truncated(vlm, enc, depth, mode), torch.no_grad():
                ids = vlm.model.generate(
                    **inputs,
                    max_new_tokens=STEPS,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                    past_key_values=DynamicCache(),
                )
            new = ids[:, enc.is_image.shape[1] :].tolist()
            assert new == [found[b][i] for b in range(len(new))], (mode, depth)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_stop_leave_and_the_others_go_on(name):
    vlm = tiny_model(name)
    enc = batch(name, prompts_of(name))
    _, endless = answers(vlm, enc, "remove")
    stop = endless[0][0][3]  # one depth of the first sample says it; so may others, at other times
    _, found = answers(vlm, enc, "remove", stop=[stop])
    expected = [
        [row[: row.index(stop) + 1] if stop in row else row for row in sample] for sample in endless
    ]
    assert found == expected
    assert len({len(row) for sample in found for row in sample}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_batch_change_no_token(name):
    vlm, prompts = tiny_model(name), prompts_of(name)
    for mode in MODES:
        _, together = answers(vlm, batch(name, prompts, pad=2), mode)
        for b, prompt in enumerate(prompts):
            assert answers(vlm, batch(name, [prompt], [b]), mode)[1][0] == together[b]


class _Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.count += func in waits
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once_however_many_rows_speak():
    vlm = tiny_model("llava")
    enc = batch("llava", prompts_of("llava"))
    counts = []
    for depths in ([0], [0, 1, 2, 3, 4]):
        pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, "remove"))
        done = rerun(pre, truncation(pre, depths, "remove"))
        logits = next_logits(pre, done)
        with _Waits() as waits:
            greedy(pre, done, logits, 6)
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 6
