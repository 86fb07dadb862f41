"""reasoning_sweep on tiny models: equal to one hooked run per depth, and to known token parts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import tiny
from visdepth_utils import load_task, load_vlm
from visdepth_utils.measure import chains, reasoning, scores
from visdepth_utils.measure.interventions import truncated
from visdepth_utils.measure.patching.branches import kept_for_truncation
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.measure.reasoning import one_pixel, reasoning_sweep, token_parts
from visdepth_utils.measure.teacher_forcing import plain_tail, read_along, token_kl
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.models.encoding import append_tokens
from visdepth_utils.models.vlm import VLM
from visdepth_utils.plots.reasoning import (
    chains_page,
    distance_curves,
    score_by_compute,
    token_changes,
)

SAMPLES = [tiny.sample(i, words=3 + i) for i in range(7)]


@pytest.fixture(params=["llava", "qwen"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return request.getfixturevalue(request.param)


class Words:
    """A tokenizer of whole words; <e> is special."""

    def __init__(self, text: str) -> None:
        self.words = text.split()

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(self.words[i] for i in ids if self.words[i] != "<e>")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("red one . so the answer is 2 . <e>", "c c - c c - - a - -"),
        ("the answer is no . the answer is yes <e>", "c c c c - c - - a -"),
        ("yes . <e>", "a - -"),
        ("<e>", "-"),
    ],
)
def test_token_parts_of_known_outputs(text, parts):
    tokenizer = Words(text)
    found = token_parts(tokenizer, list(range(len(tokenizer.words))))
    assert found == [{"c": "chain", "a": "answer", "-": ""}[p] for p in parts.split()]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("so the answer is 2", "c c c c c"),
        ("the answer is 2 </think> the answer is 3", "c c c c c c - - a"),
    ],
)
def test_thinking_that_the_prompt_opened_is_chain_until_it_is_closed(text, parts):
    tokenizer = Words(text)
    found = token_parts(tokenizer, list(range(len(tokenizer.words))), "<think>")
    assert found == [{"c": "chain", "a": "answer", "-": ""}[p] for p in parts.split()]
    assert (scores.stated("<think>" + text)[0] == "") == ("answer" not in found)


def test_one_pixel_shifts_to_the_right():
    sample = tiny.sample(0)
    before, after = (np.asarray(s.images[0]) for s in (sample, one_pixel(sample)))
    assert (after[:, 1:] == before[:, :-1]).all() and (after[:, 0] == before[:, 0]).all()
    assert (after != before).any()


@pytest.fixture
def answers_named(monkeypatch):
    """Random models never say "answer is": let another of their words stand for it."""

    def name_it(vlm):
        outputs = [text.split() for text in vlm.generate(SAMPLES, 8)]
        # One whose last place in some output has words before it and behind it.
        word = next(
            w
            for said in outputs
            for w in dict.fromkeys(said)
            if 0 < len(said) - 1 - said[::-1].index(w) < len(said) - 1
        )
        pattern = chains.re.compile(rf"(?<!\S){chains.re.escape(word)}(?!\S)")
        monkeypatch.setattr(scores, "_CUE", pattern)
        return word

    return name_it


def test_an_answer_within_opened_thinking_is_not_counted(llava, answers_named, monkeypatch):
    template = llava.processor.chat_template
    monkeypatch.setattr(llava.processor, "chat_template", template + "<think>")
    vlm = replace(llava)  # nothing remembered of its template
    answers_named(vlm)
    with pytest.warns(UserWarning, match="thinks before it answers"):
        table = reasoning_sweep(vlm, SAMPLES, depths=[0], max_new_tokens=8, controls=())
    assert table["output"].str.startswith("<think>").all()
    assert table["n_answer"].isna().all() and table["n_chain"].gt(2).any()


def said_by(vlm, budget):
    full = truncation_sweep(
        vlm, SAMPLES, depths=[vlm.n_layers], max_new_tokens=budget, with_token_ids=True
    )
    return full.set_index("sample")["token_ids"]


def test_a_greedy_output_read_again_is_its_own_prediction(vlm):
    said = said_by(vlm, 8)
    spoke = [sample for sample in SAMPLES if len(said[sample.id])]
    samples = [*spoke[::-1], spoke[0]]  # any order, and one twice
    assert len(samples) > 3
    enc, lengths = read_along(vlm, samples, [said[s.id] for s in samples])
    pre = prefill(vlm, enc, kept_for_truncation(vlm, enc, "remove"))
    for b, sample in enumerate(samples):
        assert plain_tail(pre, b, lengths[b]).argmax(-1).tolist() == said[sample.id]
        alone = append_tokens(vlm, vlm.encode([sample]), [said[sample.id]])
        with torch.no_grad():
            logits = vlm.model(**alone.inputs, use_cache=False).logits[0, -lengths[b] - 1 : -1]
        assert float((plain_tail(pre, b, lengths[b]) - logits).abs().max()) < 1e-5
        assert alone.is_text[0, -lengths[b] :].tolist() == enc.is_text[b, -lengths[b] :].tolist()
        assert not alone.is_image[0, -lengths[b] :].any()
    with pytest.raises(ValueError, match="its answer has no token"):
        append_tokens(vlm, vlm.encode(SAMPLES[:1]), [[]])
    with pytest.raises(ValueError, match="2 answers for 1 rows"):
        append_tokens(vlm, vlm.encode(SAMPLES[:1]), [[1], [2]])
    with pytest.raises(ValueError, match="1 token_ids for 7 samples"):
        token_kl(vlm, SAMPLES, token_ids=[[1]])


def test_an_answer_of_the_embedded_model_is_found():
    """Its decoded "2." does not encode to its own tokens: reading must go by tokens."""
    vlm = load_vlm("data/minivlm/small")
    task = load_task("reason", n=4, style="long")
    table = reasoning_sweep(vlm, task, depths=[0], controls=("run again",))
    full = table[(table["depth"] == vlm.n_layers)]
    assert full["n_answer"].eq(1).all() and (full["n_chain"] > 5).all()
    assert full["changed_chain"].eq(0).all() and full["changed_answer"].eq(0).all()
    assert full["kl_chain"].max() < 1e-6
    cut = table[table["depth"] == 0]
    assert cut["changed_chain"].mean() > 0.1


@pytest.mark.parametrize("mode", ["remove", "renumber", "freeze"])
def test_forced_columns_equal_one_hooked_run_per_depth(vlm, mode, answers_named):
    word = answers_named(vlm)
    table = reasoning_sweep(vlm, SAMPLES, mode=mode, max_new_tokens=8, controls=())
    said = said_by(vlm, 8)
    measured = set()
    for sample in SAMPLES:
        full = table.query("sample == @sample.id and depth == @vlm.n_layers")["output"].item()
        if word not in full.split()[1:]:
            continue  # it begins with the word, or does not hold it: no chain
        tokens = said[sample.id]
        enc, n = append_tokens(vlm, vlm.encode([sample]), [tokens]), len(tokens)
        parts = np.array(token_parts(vlm.tokenizer, tokens))
        measured |= set(parts)
        with torch.no_grad():
            plain = vlm.model(**enc.inputs, use_cache=False).logits[0, -n - 1 : -1]
        for depth in range(vlm.n_layers + 1):
            with truncated(vlm, enc, depth, mode), torch.no_grad():
                cut = vlm.model(**enc.inputs, use_cache=False).logits[0, -n - 1 : -1]
            row = table.query("sample == @sample.id and depth == @depth").iloc[0]
            p, q = plain.log_softmax(-1), cut.log_softmax(-1)
            kl = (p.exp() * (p - q)).sum(-1).numpy()
            other = (plain.argmax(-1) != cut.argmax(-1)).numpy()
            for part in ("chain", "answer"):
                here = parts == part
                assert row[f"n_{part}"] == here.sum() or not here.any()
                if here.any() and (parts == "chain").any():
                    assert row[f"kl_{part}"] == pytest.approx(kl[here].mean(), abs=1e-5)
                    assert row[f"changed_{part}"] == pytest.approx(other[here].mean())
    assert {"chain", "answer"} <= measured


def test_controls_stand_at_full_depth(vlm):
    table = reasoning_sweep(vlm, SAMPLES, depths=[0, 2], max_new_tokens=6)
    assert set(table["depth"]) == {0, 2, vlm.n_layers}
    controls = table[table["control"] != ""]
    assert set(controls["control"]) == set(reasoning.CONTROLS)
    assert controls["depth"].eq(vlm.n_layers).all()
    full = table.query("depth == @vlm.n_layers and control == ''")
    again = controls[controls["control"] == "run again"]
    assert again["output"].tolist() == full["output"].tolist()
    shifted = controls[controls["control"] == "one pixel"]
    assert shifted["output"].tolist() == vlm.generate([one_pixel(s) for s in SAMPLES], 6)
    found = chains.compare(table)
    floor = found[found["control"] == "run again"]
    assert floor[["edit", "steps", "flip"]].to_numpy().max() == 0


def test_depth_l_is_the_full_model_and_blocks_do_not_matter(vlm, answers_named):
    answers_named(vlm)
    table = reasoning_sweep(vlm, SAMPLES, max_new_tokens=6, controls=("another picture",))
    full = table.query("depth == @vlm.n_layers and control == ''")
    assert full["output"].tolist() == vlm.generate(SAMPLES, 6)
    halves = [
        reasoning_sweep(
            vlm, part, max_new_tokens=6, controls=("another picture",), others=SAMPLES, max_rows=3
        )
        for part in (SAMPLES[:3], SAMPLES[3:])
    ]
    keys = ["sample", "depth", "control"]
    one, two = (t.sort_values(keys).reset_index(drop=True) for t in (table, pd.concat(halves)))
    assert one["output"].tolist() == two["output"].tolist()
    for column in ("kl_chain", "kl_answer", "changed_chain"):
        assert one[column].notna().any(), column
        np.testing.assert_allclose(one[column].astype(float), two[column].astype(float), atol=1e-5)


def test_bad_input_is_named(vlm):
    with pytest.raises(ValueError, match="unknown control 'blur'"):
        reasoning_sweep(vlm, SAMPLES, controls=("blur",), max_new_tokens=4)
    with pytest.raises(ValueError, match="give max_new_tokens"):
        reasoning_sweep(vlm, SAMPLES)
    assert len(reasoning_sweep(vlm, [], max_new_tokens=3)) == 0


def test_figures_and_page(vlm):
    table = chains.compare(reasoning_sweep(vlm, SAMPLES, max_new_tokens=6))
    for figure in (distance_curves(table), token_changes(table)):
        assert len(figure.axes) == 2
    curve = distance_curves(table).axes[1].get_lines()[0]
    plain = table[table["control"] == ""].groupby("depth")[["edit", "edit_chance"]].mean()
    expected = (plain["edit"] / plain["edit_chance"]).where(plain["edit"] > 0, 0.0)
    np.testing.assert_allclose(curve.get_ydata(), expected, atol=1e-12)
    few = distance_curves(table.assign(edit_chance=np.nan))  # no chance to compare with
    assert np.isnan(few.axes[1].get_lines()[0].get_ydata()).all()
    page = chains_page(table, {s.id: "<why> ?" for s in SAMPLES}, [0, 2], n=2).data
    assert page.count("&lt;why&gt; ?") == 2 and page.count("d = 0") == 2
    with pytest.raises(ValueError, match="depth 77 was not measured"):
        chains_page(table, {}, [77])
    with pytest.raises(ValueError, match="several modes"):
        distance_curves(pd.concat([table, table.assign(mode="freeze")]))


def test_score_by_compute_puts_each_depth_at_its_cost():
    rows = [
        {"image": f"i{i}", "style": style, "mode": "remove", "depth": d, "correct": d / 2}
        | {"token_layers": 10 * d + cost}
        for i in range(3)
        for style, cost in (("direct", 0), ("long", 5))
        for d in (0, 1, 2)
    ]
    table = pd.DataFrame(rows)
    lines = score_by_compute(table).axes[1].get_lines()
    assert [list(line.get_xdata()) for line in lines] == [[0, 10, 20], [5, 15, 25]]
    assert list(lines[0].get_ydata()) == [0, 0.5, 1]
    with pytest.raises(ValueError, match="lacks column.* token_layers"):
        score_by_compute(table.drop(columns="token_layers"))
