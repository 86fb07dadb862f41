"""Sweeps: equal to one hooked run per depth or pair, however the rows are grouped."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import tiny
from visdepth_utils.data.tasks import other_images
from visdepth_utils.measure import batching, substitution, teacher_forcing, truncation
from visdepth_utils.measure.batching import chunks, in_blocks, out_of_memory, row_bytes
from visdepth_utils.measure.interventions import edited, substituted, truncated
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.measure.substitution import Spec, pairs, substitution_grid
from visdepth_utils.measure.teacher_forcing import answer_lengths, token_kl
from visdepth_utils.measure.truncation import FROZEN_OTHER, kl_divergence, truncation_sweep
from visdepth_utils.models.vlm import VLM

SAMPLES = [tiny.sample(0), tiny.sample(1, words=9, reference="blue"), tiny.sample(2, words=4)]


@pytest.fixture(params=["llava", "qwen"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return request.getfixturevalue(request.param)


def last_logits(vlm: VLM, enc) -> torch.Tensor:
    with torch.no_grad():
        return vlm.model(**enc.inputs, use_cache=False, logits_to_keep=1).logits[:, -1]


def test_kl_known_answers() -> None:
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert float(kl_divergence(p, q)) == pytest.approx(0.510826, abs=1e-6)
    assert float(kl_divergence(p, p)) == 0.0
    assert float(kl_divergence(p + 3, p)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("mode", ["remove", "renumber", "freeze"])
def test_divergence_equals_one_hooked_run_per_depth(vlm: VLM, mode: str) -> None:
    table = truncation_sweep(vlm, SAMPLES, mode=mode, max_new_tokens=0)
    assert table["mode"].eq(mode).all()
    for sample in SAMPLES:
        enc = vlm.encode([sample])
        full = last_logits(vlm, enc)
        rows = table[table["sample"] == sample.id].set_index("depth")["kl"]
        assert list(rows.index) == list(range(vlm.n_layers + 1))
        for depth, value in rows.items():
            with truncated(vlm, enc, int(depth), mode):
                expected = float(kl_divergence(full, last_logits(vlm, enc)))
            assert value == pytest.approx(expected, abs=1e-5)
        assert rows[vlm.n_layers] == 0
        assert rows[0] > 1e-4


def test_controls_of_freeze_equal_one_hooked_run_per_depth(vlm: VLM) -> None:
    """States of another picture, and noise with the moments of some, stay readable instead."""
    others = other_images(SAMPLES, seed=3)
    options = {"max_new_tokens": 0, "seed": 3}
    tables = {m: truncation_sweep(vlm, SAMPLES, mode=m, **options) for m in FROZEN_OTHER}

    def states_of(sample):
        enc = vlm.encode([sample])
        with torch.no_grad():
            out = vlm.model(**enc.inputs, output_hidden_states=True).hidden_states
        return [state[0][enc.is_image[0]] for state in out]

    rng, rows = np.random.default_rng(3), []
    for i in rng.permutation(len(SAMPLES)):
        own = states_of(SAMPLES[i])
        some = rng.permutation(len(own[0]))[: truncation.NOISE_TOKENS].tolist()
        rows.append([state[some] for state in own])
    bank = [torch.cat(layer) for layer in zip(*rows, strict=True)]
    for sample in SAMPLES:
        enc, other = vlm.encode([sample]), states_of(others[sample.id])
        shape = (int(enc.is_image.sum()), len(bank[0]))
        z = np.random.default_rng([3, *sample.id.encode()]).standard_normal(shape, np.float32)
        for mode, table in tables.items():
            rows = table[table["sample"] == sample.id].set_index("depth")
            assert rows["mode"].eq(mode).all()
            assert rows["kl"][vlm.n_layers] == 0
            for depth in range(vlm.n_layers):
                states, x = other[depth], bank[depth]
                if mode == "freeze noise":
                    states = x.mean(0) + torch.from_numpy(z) @ (x - x.mean(0)) / len(x) ** 0.5

                def put_in(layer, hidden, kwargs, depth=depth, states=states, enc=enc):
                    if layer >= depth:
                        hidden = hidden.clone()
                        hidden[enc.is_image] = states
                    return hidden

                with edited(vlm, put_in):
                    changed = last_logits(vlm, enc)
                expected = float(kl_divergence(last_logits(vlm, enc), changed))
                assert rows["kl"][depth] == pytest.approx(expected, abs=1e-5)
            assert rows["kl"][0] > 1e-4


def test_noise_has_the_moments_of_the_bank_whatever_is_in_the_own_picture(llava: VLM) -> None:
    """And those come from at most so many pictures and tokens; rows are drawn by sample."""
    bank = truncation._bank(llava, SAMPLES, 0)
    n = sum(min(int(x.sum()), truncation.NOISE_TOKENS) for x in llava.encode(SAMPLES).is_image)
    assert [tuple(x.shape) for x in bank] == [(n, llava.hidden_size)] * llava.n_layers
    names = [f"draw {i}" for i in range(4000)]
    enc = llava.encode(SAMPLES[:1])
    pre = prefill(llava, enc, enc.is_image)
    many = replace(pre, enc=replace(enc, is_image=enc.is_image.expand(len(names), -1)))
    noise = truncation._noise(many, bank, names, 0)(1)
    again = truncation._noise(pre, bank, names[7:8], 0)(1)
    assert torch.allclose(again[0], noise[7], atol=1e-5)
    noise, scale = noise.flatten(0, 1), float(bank[1].var())
    assert (noise.mean(0) - bank[1].mean(0)).abs().max() < 0.05 * scale**0.5
    assert (noise.T.cov() - bank[1].T.cov(correction=0)).abs().max() < 0.05 * scale


def test_answers_equal_plain_generation_and_the_physical_loop(vlm: VLM) -> None:
    table = truncation_sweep(vlm, SAMPLES, max_new_tokens=6)
    full = table[table["depth"] == vlm.n_layers]
    assert full["output"].tolist() == vlm.generate(SAMPLES, 6)
    assert full["same"].all()
    assert (full[["bleu_full", "rouge_full", "chrf_full"]] == 1).all(axis=None)
    assert table["output"].nunique() > 1
    dropped = truncation_sweep(vlm, SAMPLES, max_new_tokens=6, implementation="physical")
    assert dropped["output"].tolist() == table["output"].tolist()
    assert dropped["n_tokens"].tolist() == table["n_tokens"].tolist()
    assert dropped["kl"].tolist() == pytest.approx(table["kl"].tolist(), abs=1e-5)
    assert dropped["implementation"].eq("physical").all()


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 100])
def test_grouping_of_rows_changes_nothing(llava: VLM, max_rows: int) -> None:
    alone = pd.concat(
        [truncation_sweep(llava, [s], max_new_tokens=5) for s in SAMPLES], ignore_index=True
    )
    table = truncation_sweep(llava, SAMPLES, max_new_tokens=5, max_rows=max_rows)
    close = dict(check_exact=False, atol=1e-6)
    pd.testing.assert_frame_equal(table, alone, **close)
    one = substitution_grid(llava, SAMPLES, max_new_tokens=3, max_rows=100)
    pd.testing.assert_frame_equal(
        substitution_grid(llava, SAMPLES, max_new_tokens=3, max_rows=max_rows), one, **close
    )


def test_chosen_depths_are_compared_with_the_full_model_all_the_same(llava: VLM) -> None:
    everything = truncation_sweep(llava, SAMPLES, max_new_tokens=4)
    some = truncation_sweep(llava, SAMPLES, depths=[2, 0], max_new_tokens=4)
    assert sorted(set(some["depth"])) == [0, 2]
    expected = everything[everything["depth"].isin([0, 2])].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected, check_exact=False, atol=1e-6)


def test_token_divergence_equals_a_hooked_run_along_the_same_text(vlm: VLM) -> None:
    table = token_kl(vlm, SAMPLES, depths=[0, 2, vlm.n_layers])
    assert table.groupby("sample")["n_tokens"].first().to_dict() == {"s0": 2, "s1": 1, "s2": 2}
    for sample in SAMPLES:
        enc = vlm.encode([sample], with_reference=True)
        n = len(sample.reference.split())
        with torch.no_grad():
            plain = vlm.model(**enc.inputs, use_cache=False).logits[0, -n - 1 : -1]
        for depth in (0, 2):
            with truncated(vlm, enc, depth), torch.no_grad():
                cut = vlm.model(**enc.inputs, use_cache=False).logits[0, -n - 1 : -1]
            mine = table[(table["sample"] == sample.id) & (table["depth"] == depth)]
            assert mine["token"].tolist() == list(range(n))
            expected = kl_divergence(plain, cut).tolist()
            assert mine["kl"].tolist() == pytest.approx(expected, abs=1e-5)
            agrees = (plain.argmax(-1) == cut.argmax(-1)).tolist()
            assert mine["same_top1"].tolist() == agrees
    assert table.loc[table["depth"] == vlm.n_layers, "kl"].eq(0).all()
    assert table.loc[table["depth"] == 0, "kl"].gt(0).all()


def test_token_divergence_along_other_texts(llava: VLM) -> None:
    table = token_kl(llava, SAMPLES[:2], depths=[0], texts=["red", "blue green red"])
    assert table["n_tokens"].tolist() == [1, 3, 3, 3]
    with pytest.raises(ValueError, match="1 texts for 2 samples"):
        token_kl(llava, SAMPLES[:2], texts=["red"])
    with pytest.raises(ValueError, match="'s0': its answer '' has no token"):
        token_kl(llava, SAMPLES[:1], texts=[""])
    enc = llava.encode(SAMPLES, with_reference=True)
    assert answer_lengths(llava, SAMPLES, enc) == [2, 1, 2]


@pytest.mark.parametrize("modality", ["image", "text"])
def test_grid_equals_one_hooked_run_per_pair(vlm: VLM, modality: str) -> None:
    table = substitution_grid(
        vlm, SAMPLES[:2], modality=modality, rescale=(False, True), max_new_tokens=4
    )
    own = table[table["control"] == ""]
    assert len(own) == 2 * (2 * vlm.n_layers**2 - vlm.n_layers)
    for sample in SAMPLES[:2]:
        enc = vlm.encode([sample])
        where = substitution.replaceable(enc, modality)
        with torch.no_grad():
            out = vlm.model(**enc.inputs, output_hidden_states=True, use_cache=False)
        hidden, plain = out.hidden_states, out.logits[:, -1]
        for row in own[own["sample"] == sample.id].itertuples():
            states = hidden[row.source_layer]
            if row.rescaled:
                states = states * hidden[row.layer].norm(dim=-1, keepdim=True)
                states = states / hidden[row.source_layer].norm(dim=-1, keepdim=True)
            with substituted(vlm, enc, row.layer, where, states):
                logits = last_logits(vlm, enc)
                said = vlm.generate([sample], 4)[0]
            assert row.kl == pytest.approx(float(kl_divergence(plain, logits)), abs=1e-5)
            assert row.same_top1 == (int(logits.argmax()) == int(plain.argmax()))
            assert row.output == said
            if row.source_layer == row.layer:
                assert row.kl < 1e-6
                assert row.same
                assert row.similarity == 1
    assert table.loc[own.index[own["source_layer"] != own["layer"]], "kl"].gt(1e-6).any()


def test_controls_put_in_what_they_say(llava: VLM) -> None:
    table = substitution_grid(llava, SAMPLES, max_new_tokens=0, seed=3)
    counts = table["control"].value_counts().to_dict()
    n = llava.n_layers
    per_layer = {"other image": 3 * n, substitution.FAR_NOISE: 3 * n}
    assert counts == {"": 3 * n * n, "noise": 3 * n * (n - 1), **per_layer}
    others = other_images(SAMPLES, seed=3)
    for sample in SAMPLES:
        enc, strange = llava.encode([sample]), llava.encode([others[sample.id]])
        with torch.no_grad():
            states = llava.model(**strange.inputs, output_hidden_states=True).hidden_states[1]
        plain = last_logits(llava, enc)
        with substituted(llava, enc, 1, enc.is_image, states):
            expected = float(kl_divergence(plain, last_logits(llava, enc)))
        rows = table[(table["sample"] == sample.id) & (table["control"] == "other image")]
        assert rows.set_index("layer")["kl"][1] == pytest.approx(expected, abs=1e-5)
    again = substitution_grid(llava, SAMPLES[1:2], max_new_tokens=0, seed=3, others=SAMPLES)
    mine = table[table["sample"] == "s1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, mine, check_exact=False, atol=1e-6)


def test_noise_equals_one_hooked_run_per_row(vlm: VLM) -> None:
    """Both noises by the naive loop: own states plus the sample's vectors, at the length named."""
    table = substitution_grid(vlm, SAMPLES, max_new_tokens=4, seed=3)
    others = other_images(SAMPLES, seed=3)
    for sample in SAMPLES[:2]:
        enc = vlm.encode([sample])
        strange = vlm.encode([others[sample.id]])
        with torch.no_grad():
            own = vlm.model(**enc.inputs, output_hidden_states=True).hidden_states
            other = vlm.model(**strange.inputs, output_hidden_states=True).hidden_states
        drawn = np.random.default_rng([3, *sample.id.encode()])
        shape = (int(enc.is_image.sum()), own[0].shape[-1])
        unit = torch.from_numpy(drawn.standard_normal(shape, np.float32))
        unit = unit / unit.norm(dim=-1, keepdim=True)
        plain = last_logits(vlm, enc)
        noises = table[(table["sample"] == sample.id) & table["control"].str.startswith("noise")]
        assert len(noises) == vlm.n_layers**2  # n * (n - 1) pairs, and one for each layer
        for row in noises.itertuples():
            at = own[row.layer][enc.is_image]
            far = row.control == substitution.FAR_NOISE
            assert (row.source_layer == row.layer) == far
            to = other[row.layer][strange.is_image] if far else own[row.source_layer][enc.is_image]
            states = own[row.layer].clone()
            states[enc.is_image] = at + unit * (to - at).norm(dim=-1, keepdim=True)
            with substituted(vlm, enc, row.layer, enc.is_image, states):
                logits = last_logits(vlm, enc)
                said = vlm.generate([sample], 4)[0]
            assert row.kl == pytest.approx(float(kl_divergence(plain, logits)), abs=1e-5)
            assert row.output == said
        assert noises.loc[noises["control"] == substitution.FAR_NOISE, "kl"].gt(1e-6).all()


def test_noise_as_far_as_another_image_needs_no_other_control_and_no_pass_of_its_own(
    llava: VLM, monkeypatch
) -> None:
    passes = []
    inner = substitution.prefill
    monkeypatch.setattr(substitution, "prefill", lambda *a, **k: passes.append(1) or inner(*a, **k))

    def measured(*controls: str) -> tuple[int, pd.DataFrame]:
        passes.clear()
        table = substitution_grid(llava, SAMPLES, controls=controls, max_new_tokens=0, max_rows=99)
        return len(passes), table

    together, table = measured("other image", "noise", substitution.FAR_NOISE)
    assert together == measured("other image")[0] == 2  # own and other images, for all controls
    alone = measured(substitution.FAR_NOISE)[1]
    expected = table[table["control"].isin(["", substitution.FAR_NOISE])].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, expected, check_exact=False, atol=1e-6)


def test_noise_is_as_long_as_what_it_stands_for(llava: VLM) -> None:
    enc = llava.encode(SAMPLES)
    pre = substitution.prefill(llava, enc, substitution.moved_tokens(llava, enc, enc.is_image))
    target = substitution.Index.of(enc.is_image)
    noise = substitution._directions(SAMPLES, target, llava, 0)
    own, source_layer = pre.state(2, target), pre.state(0, target)
    got = substitution._states(pre, target, Spec(2, 0, "noise"), None, noise)
    assert torch.allclose((got - own).norm(dim=-1), (source_layer - own).norm(dim=-1), rtol=1e-4)
    assert float(torch.cosine_similarity(got - own, source_layer - own, dim=-1).abs().max()) < 0.9


def test_text_before_the_image_is_not_replaced(llava: VLM) -> None:
    enc = llava.encode(SAMPLES)
    chosen = substitution.replaceable(enc, "text")
    first = enc.is_image.long().argmax(1)
    at = torch.arange(chosen.shape[1])
    assert not (chosen & (at < first[:, None])).any()
    assert not (chosen & enc.is_image).any()
    assert chosen[:, -1].all()  # where the answer is read off, special token or not
    with pytest.raises(ValueError, match="use 'image' or 'text'"):
        substitution.replaceable(enc, "sound")


def test_what_belongs_to_an_image_is_not_text(qwen: VLM) -> None:
    enc = qwen.encode([tiny.sample(0)])
    chosen = substitution.replaceable(enc, "text")[0]
    words = qwen.tokenizer.convert_ids_to_tokens(enc.inputs["input_ids"][0])
    assert "<|vision_end|>" in words
    assert not chosen[words.index("<|vision_end|>")]
    assert chosen[words.index("<|vision_end|>") + 1 :].all()


def test_pairs_and_stride(llava64: VLM) -> None:
    specs = pairs([1, 3], ["noise", "other image", substitution.FAR_NOISE], (False, True))
    assert [spec.layer for spec in specs] == sorted(spec.layer for spec in specs)
    assert len(specs) == len(set(specs)) == 2 * (1 + 1 + 1 + 2 + 1)
    table = substitution_grid(llava64, SAMPLES[:2], stride=2, controls=(), max_new_tokens=0)
    assert sorted(set(table["layer"])) == [1, 3]
    with pytest.raises(ValueError, match="stride=0"):
        substitution_grid(llava64, SAMPLES, stride=0, max_new_tokens=0)
    with pytest.raises(ValueError, match="layer 4 is not in 0..3"):
        substitution_grid(llava64, SAMPLES, layers=[4], max_new_tokens=0)
    with pytest.raises(ValueError, match="no layers given"):
        substitution_grid(llava64, SAMPLES, layers=[], max_new_tokens=0)
    with pytest.raises(ValueError, match="unknown control 'text'"):
        substitution_grid(llava64, SAMPLES, controls=("text",), max_new_tokens=0)


def test_a_budget_is_needed_for_bare_samples(llava: VLM) -> None:
    for sweep in (truncation_sweep, substitution_grid):
        with pytest.raises(ValueError, match="give max_new_tokens"):
            sweep(llava, SAMPLES)
    assert truncation_sweep(llava, [], max_new_tokens=1).empty


def test_reading_an_answer_that_does_not_fit_names_its_sample(vlm: VLM, monkeypatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(teacher_forcing, "rerun", full)
    with pytest.raises(RuntimeError, match="sample 's0' does not fit into memory"):
        token_kl(vlm, SAMPLES, token_ids=[[5], [6], [7]], max_rows=4)


def test_other_images_are_fitted_to_the_own_size() -> None:
    own = replace(SAMPLES[0], images=(tiny.picture(0, 48), tiny.picture(1, 24)))
    fitted = other_images([own], [own, SAMPLES[1]])[own.id]
    assert [picture.size for picture in fitted.images] == [(48, 48), (24, 24)]
    (other,) = SAMPLES[1].images
    assert fitted == replace(own, images=(other.resize((48, 48)), other.resize((24, 24))))


def test_memory_running_out_halves_the_rows_and_goes_on(llava: VLM, monkeypatch) -> None:
    expected = truncation_sweep(llava, SAMPLES, max_new_tokens=3)
    real, calls = truncation._masked, []

    def tight(vlm, samples, depths, mode, budget, rows, *more):  # noqa: ANN001, ANN002, ANN202
        calls.append((len(samples), rows))
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(vlm, samples, depths, mode, budget, rows, *more)

    monkeypatch.setattr(truncation, "_masked", tight)
    table = truncation_sweep(llava, SAMPLES, max_new_tokens=3, max_rows=12)
    assert [rows for _, rows in calls] == [12, 6, 3, 3, 3]
    pd.testing.assert_frame_equal(table, expected, check_exact=False, atol=1e-6)


def test_memory_errors_are_told_from_others() -> None:
    def fails(message: str) -> None:
        def measure(*_args: object) -> list:
            raise RuntimeError(message)

        in_blocks(SAMPLES, 4, 8, measure)

    with pytest.raises(RuntimeError, match="sample 's0' does not fit into memory with a single"):
        fails("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        fails("shapes differ")
    assert out_of_memory(MemoryError())
    assert not out_of_memory(ValueError("memory"))
    with pytest.raises(ValueError, match="max_rows=0"):
        in_blocks(SAMPLES, 4, 0, lambda *_: [])


def test_progress_counts_samples(llava: VLM) -> None:
    seen: list[tuple[int, int, str]] = []
    truncation_sweep(
        llava, SAMPLES, max_new_tokens=1, max_rows=4, progress=lambda *now: seen.append(now)
    )
    assert seen == [(i, 3, "truncation") for i in (1, 2, 3)]


def test_chunks_and_row_bytes(llava: VLM) -> None:
    assert chunks(list(range(5)), 2) == [[0, 1], [2, 3], [4]]
    assert chunks([1, 2], 0) == [[1], [2]]
    small = row_bytes(llava, tokens=30, moved=10, context=4, rows=1)
    assert row_bytes(llava, tokens=30, moved=10, context=4, rows=1, samples=2) == 2 * small
    assert row_bytes(llava, tokens=30, moved=10, context=4, rows=4) > small
    assert 1 <= batching.choose_max_rows(llava, SAMPLES[0], 4, 10) <= batching.MOST_ROWS


def test_rows_of_a_blind_batch_do_not_reach_the_model(llava: VLM) -> None:
    table = truncation_sweep(llava, SAMPLES, depths=[0], max_new_tokens=0)
    swapped = [replace(s, images=o.images) for s, o in zip(SAMPLES, SAMPLES[::-1], strict=True)]
    enc, other = llava.encode(SAMPLES), llava.encode(swapped)
    for batch in (enc, other):
        with truncated(llava, batch, 0):
            batch_logits = last_logits(llava, batch)
        if batch is enc:
            first = batch_logits
    # At depth 0 the picture cannot matter, whatever it shows.
    assert torch.allclose(first, batch_logits, atol=1e-6)
    assert np.isfinite(table["kl"]).all()
