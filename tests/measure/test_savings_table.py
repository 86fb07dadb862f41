"""The field's table: shares that can be had, scores of the sweeps, costs of the cost model."""

import numpy as np
import pytest

from tests import tiny
from visdepth_utils.data.tasks import Task
from visdepth_utils.measure.costs import predicted_costs, shape_of
from visdepth_utils.measure.hiding import Hide, hiding_sweep
from visdepth_utils.measure.savings_table import savings_table
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.models.vlm import VLM


def answered(vlm: VLM) -> Task:
    """Samples whose references are what the model answers."""
    samples = [tiny.sample(i, words=4 + i) for i in range(3)]
    plain = hiding_sweep(vlm, samples, [], max_new_tokens=2)
    said = plain.set_index("sample")["output"]
    known = [tiny.sample(i, words=4 + i, reference=said[s.id]) for i, s in enumerate(samples)]
    return Task("own", known, 2, "the test")


def test_the_table_is_made_of_the_sweeps(qwen: VLM) -> None:
    task, last = answered(qwen), qwen.n_layers
    table = savings_table(qwen, {"own": task}, retained=(0.5,), draws=2, repeats=1)
    by = table.set_index("method")
    assert list(by.index) == ["none", "remove", "freeze", "random", "attention"]
    assert by.loc["none", ["retained", "own", "flops", "kv_bytes", "prefill_s"]].eq(1).all()
    assert np.allclose(by["retained"][1:], [2 / 3, 2 / 3, 0.5, 0.5])  # of 3 layers
    middle = round(last / 2)
    removed = truncation_sweep(qwen, task, depths=[middle])["correct"].mean()
    frozen = truncation_sweep(qwen, task, depths=[middle], mode="freeze")["correct"].mean()
    full = hiding_sweep(qwen, task, [])["correct"].mean()
    assert full > 0
    assert by.loc["remove", "own"] == pytest.approx(removed / full)
    assert by.loc["freeze", "own"] == pytest.approx(frozen / full)
    row = by.loc["random"]
    draws = [Hide(int(row["depth"]), share=row["share"], rule="random", draw=i) for i in range(2)]
    drawn = hiding_sweep(qwen, task, draws).query("intervention == 'partial'")
    assert by.loc["random", "own"] == pytest.approx(drawn["correct"].mean() / full)
    assert by["average"].equals(by["own"].rename("average"))


def test_costs_are_those_of_the_cost_model(qwen: VLM) -> None:
    task = answered(qwen)
    table = savings_table(qwen, {"own": task}, retained=(0.25,), rules=("stride",), repeats=0)
    counts = [qwen.encode([s]).is_image for s in task.samples]
    image = round(np.mean([int(c.sum()) for c in counts]))
    other = round(np.mean([int((~c).sum()) for c in counts]))
    for row in table.to_dict("records"):
        told = {"share": row["share"], "frozen": row["method"] == "freeze"}
        shape = shape_of(qwen.model.config)
        costs = predicted_costs(shape, image, other, [row["depth"]], **told).iloc[0]
        assert row["flops"] == pytest.approx(costs["prefill_ratio"])
        assert row["kv_bytes"] == pytest.approx(costs["kv_ratio"])
    assert "prefill_s" not in table
    assert table.set_index("method").loc["freeze", "kv_bytes"] == 1


def test_bad_input_is_named(qwen: VLM) -> None:
    with pytest.raises(ValueError, match="no tasks given"):
        savings_table(qwen, {})
    with pytest.raises(ValueError, match=r"retained 1.5: give shares in 0..1"):
        savings_table(qwen, {"own": Task("own", [tiny.sample(0)], 2, "the test")}, retained=(1.5,))
