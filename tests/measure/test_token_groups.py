"""Groups of tokens for C2: what each holds, that nothing moves, that numbers are the plain ones."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import tiny
from tests.measure.plain_geometry import depth_curvature
from visdepth_utils.data.tasks import Task
from visdepth_utils.measure.geometry import token_groups
from visdepth_utils.measure.geometry.layer_geometry import layer_geometry
from visdepth_utils.measure.geometry.token_groups import (
    BESIDE,
    GROUPS,
    IN_PLACE,
    NO_PICTURE,
    _groups,
    _read,
    own_answers,
    placed_geometry,
    text_geometry,
    with_filler,
)
from visdepth_utils.models.generation import stop_ids
from visdepth_utils.models.hooks import capture

PLAIN = {"metrics": ["curvature", "update_ratio"], "sinks": "keep"}


@pytest.fixture
def task():
    samples = [tiny.sample(i, words=5 + 3 * i, reference="one two three four") for i in range(4)]
    return Task("vqa", samples, 6, "test")


def given(task, ids=(10, 11, 12, 13, 14)):
    rows = [{"sample": s.id, "ids": list(ids[: i + 2])} for i, s in enumerate(task.samples)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_own_answers_are_what_generate_says(request, task, name):
    vlm = request.getfixturevalue(name)
    found = own_answers(vlm, task, batch_size=3)
    assert found["output"].tolist() == vlm.generate(task.samples, task.max_new_tokens)
    assert found["sample"].tolist() == [s.id for s in task.samples]
    assert all(1 <= len(ids) <= 6 for ids in found["ids"])
    assert not any(set(ids[1:]) & set(stop_ids(vlm)) for ids in found["ids"])


def test_own_answers_say_that_the_prompt_opened_thinking(llava, task, monkeypatch):
    template = llava.processor.chat_template
    monkeypatch.setattr(llava.processor, "chat_template", template + "<think>")
    vlm = replace(llava)  # nothing remembered of its template
    found = own_answers(vlm, task)["output"]
    assert found.str.startswith("<think>").all()
    assert found.tolist() == vlm.generate(task.samples, task.max_new_tokens)


def test_an_answer_that_ends_at_once_is_the_token_that_ends_it(llava, task, monkeypatch):
    (stop,) = stop_ids(llava)
    stops = lambda vlm, enc, n: torch.full((len(enc), n), stop)  # noqa: E731
    monkeypatch.setattr(token_groups, "generated", stops)
    found = own_answers(llava, task)
    assert found["ids"].tolist() == [[stop]] * 4
    assert found["output"].tolist() == [""] * 4
    table = text_geometry(llava, task, found, groups=["generated"], **PLAIN)
    assert table["value"].isna().all()
    assert (table["note"] == "no generated tokens").all()


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_groups_are_disjoint_and_behind_the_picture(request, task, name):
    vlm = request.getfixturevalue(name)
    enc, said = _read(vlm, task.samples, given(task))
    groups = _groups(enc, said, 0)
    assert set(groups) == {*GROUPS, *BESIDE}
    at = torch.arange(said.shape[1])
    for b in range(4):
        assert at[groups["text"][b]].min() > at[groups["image"][b]].max()
        assert groups["generated"][b].sum() == b + 2
        assert (groups["generated"] & groups["text"])[b].sum() == b + 2
        assert not (groups["generated"] & groups["prompt"])[b].any()
        # Shuffled: the same tokens, the same counts, other labels.
        both = groups["image"][b] | groups["text"][b]
        mixed = groups["shuffled image"][b] | groups["shuffled text"][b]
        assert torch.equal(both, mixed)
        assert not (groups["shuffled image"] & groups["shuffled text"])[b].any()
        assert groups["shuffled image"][b].sum() == groups["image"][b].sum()
    assert not torch.equal(groups["shuffled image"], groups["image"])
    assert torch.equal(_groups(enc, said, 0)["shuffled text"], groups["shuffled text"])
    assert not torch.equal(_groups(enc, said, 1)["shuffled text"], groups["shuffled text"])


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_filler_takes_the_slots_and_moves_nothing(request, task, name):
    vlm = request.getfixturevalue(name)
    enc, _ = _read(vlm, task.samples, given(task))
    filled, slots = with_filler(enc, [[20, 21, 22]] * 4)
    before, after = enc.inputs["input_ids"], filled.inputs["input_ids"]
    assert torch.equal(slots, enc.is_image)
    assert torch.equal(before[~slots], after[~slots])
    assert set(after[slots].tolist()) == {20, 21, 22}
    assert not any("pixel" in key or "grid" in key for key in filled.inputs)
    assert not filled.is_image.any()
    if "position_ids" in enc.inputs:
        assert torch.equal(enc.inputs["position_ids"], filled.inputs["position_ids"])
    assert enc.is_image.any()  # the batch itself is untouched
    logits = capture(vlm, filled, lambda *_: None)
    assert torch.isfinite(logits).all()


def test_filler_equals_the_same_ids_without_a_picture(llava, task):
    """The pass is that of a plain text model over these ids: same states at every layer."""
    enc, _ = _read(llava, task.samples[:1], given(task))
    filled, _ = with_filler(enc, [[20, 21, 22]])
    states = []
    capture(llava, filled, lambda _, state: states.append(state.clone()))
    plain = llava.model.model.language_model(
        input_ids=filled.inputs["input_ids"], output_hidden_states=True
    ).hidden_states
    for ours, theirs in zip(states[:-1], plain, strict=False):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_references_as_answers_give_the_image_curves_of_layer_geometry(llava, task):
    answers = pd.DataFrame(
        [
            {
                "sample": s.id,
                "ids": llava.tokenizer(s.reference, add_special_tokens=False).input_ids,
            }
            for s in task.samples
        ]
    )
    keys = ["sample", "layer", "metric"]
    a = layer_geometry(llava, task, modalities=["image"], **PLAIN).set_index(keys)["value"]
    table = text_geometry(llava, task, answers, batch_size=3, **PLAIN)
    b = table[table["modality"] == "image"].set_index(keys)["value"]
    pd.testing.assert_series_equal(a, b.reindex(a.index), rtol=1e-4, check_names=False)


def test_text_curvature_equals_the_plain_computation(llava, task):
    answers = given(task)
    table = text_geometry(llava, task.samples[2:3], answers, groups=["text"], **PLAIN)
    enc, said = _read(llava, task.samples[2:3], answers)
    where = enc.is_text[0] & (torch.arange(said.shape[1]) > enc.is_image[0].nonzero().max())
    states = []
    capture(llava, enc, lambda _, state: states.append(state[0, where].double().numpy()))
    v = np.diff(np.stack(states), axis=0)
    expected = [
        np.degrees(np.nanmean(depth_curvature(v[i - 1], v[i]))) for i in range(1, llava.n_layers)
    ]
    found = table[table["metric"] == "curvature"].sort_values("layer")["value"]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_placed_text_is_measured_in_the_slots(qwen, task):
    table = placed_geometry(qwen, task, given(task), **PLAIN)
    assert set(table["modality"]) == {IN_PLACE, NO_PICTURE}
    enc = qwen.encode(task.samples)
    n = table[table["modality"] == IN_PLACE].groupby("sample", sort=False)["n_tokens"].first()
    assert n.tolist() == enc.is_image.sum(1).tolist()
    assert table["value"].notna().all()


def test_errors_name_what_is_wrong(llava, task):
    with pytest.raises(ValueError, match="unknown group 'words'"):
        text_geometry(llava, task, given(task), groups=["words"])
    with pytest.raises(ValueError, match="'s3' has no answer: make them with own_answers"):
        text_geometry(llava, task, given(task).iloc[:3], **PLAIN)
    with pytest.raises(ValueError, match="no other sample's reference"):
        placed_geometry(llava, task.samples[:1], given(task), **PLAIN)
