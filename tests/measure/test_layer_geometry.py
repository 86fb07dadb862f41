"""layer_geometry: numbers equal the plain computation on kept states, and every edge is said."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests import tiny
from tests.measure.plain_geometry import (
    debiased_cka,
    depth_curvature,
    matrix_entropy,
    update_ratio,
)
from visdepth_utils.measure import batching
from visdepth_utils.measure.geometry import dimension, entropy, gram, tracks
from visdepth_utils.measure.geometry.dimension import mle_from_gram, twonn_from_gram
from visdepth_utils.measure.geometry.gram import draws
from visdepth_utils.measure.geometry.layer_geometry import COLUMNS, METRICS, layer_geometry
from visdepth_utils.models.hooks import capture
from visdepth_utils.models.vlm import VLM


def long_samples(n: int) -> list:
    """Samples with about 75 text tokens of a 40-word vocabulary."""
    return [tiny.sample(i, words=55 + i, reference="red circle left") for i in range(n)]


def values(table: pd.DataFrame, metric: str, modality: str, sample: str = "s0") -> np.ndarray:
    """One curve, in order of layer."""
    rows = table[
        (table["metric"] == metric) & (table["modality"] == modality) & (table["sample"] == sample)
    ]
    assert rows["layer"].is_monotonic_increasing
    return rows["value"].to_numpy()


def states_of(vlm: VLM, samples: Sequence, modality: str) -> list[np.ndarray]:
    """The L+1 states (N, D) of the first sample's tokens of one type."""
    enc = vlm.encode(samples, with_reference=True)
    kept: list[np.ndarray] = []
    mask = enc.mask(modality)[0]
    capture(vlm, enc, lambda _, state: kept.append(state[0, mask].double().numpy()))
    return kept


def test_rows_and_layers(llava64: VLM) -> None:
    table = layer_geometry(llava64, long_samples(2), batch_size=1)
    assert tuple(table.columns) == COLUMNS
    states = llava64.n_layers + 1
    layers = {
        "entropy": range(states),
        "id_twonn": range(states),
        "id_mle": range(states),
        "curvature": range(1, states - 1),
        "update_ratio": range(states - 1),
        "cka_ahead": range(states - 2),
    }
    for (_, modality, metric), rows in table.groupby(["sample", "modality", "metric"]):
        assert sorted(rows["layer"]) == list(layers[metric]), (modality, metric)
    assert len(table) == 2 * 2 * sum(map(len, layers.values()))
    image = table[table["modality"] == "image"]
    assert (image["n_tokens"] == 64).all() and image["value"].notna().all()
    assert (image["note"] == "").all()


@pytest.mark.parametrize("modality", ["image", "text"])
def test_values_equal_the_plain_computation(llava64: VLM, modality: str) -> None:
    samples = long_samples(3)
    table = layer_geometry(llava64, samples, sinks="keep", cka_gap=2)
    states = states_of(llava64, samples, modality)
    n = len(states[0])
    subsets = draws(n, 64, 20, ("s0", modality, 0))
    assert (len(subsets) == 1) == (n == 64)
    expected: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for H in states:
        entropies = [matrix_entropy(H[s])[0] for s in subsets]
        expected["entropy"].append(np.mean(entropies))
        for metric, estimator in (("id_twonn", twonn_from_gram), ("id_mle", mle_from_gram)):
            found = [estimator(gram.gram(H[s]))[0] for s in subsets]
            found = [value for value in found if np.isfinite(value)]
            expected[metric].append(np.mean(found) if found else np.nan)
    updates = np.diff(states, axis=0)
    for layer, v in enumerate(updates):
        expected["update_ratio"].append(np.median(update_ratio(v, states[layer])))
        if layer:
            angle = np.degrees(depth_curvature(updates[layer - 1], v))
            expected["curvature"].append(np.nanmean(angle))
    for now, ahead in zip(states, states[2:], strict=False):
        expected["cka_ahead"].append(debiased_cka(now, ahead)[0])
    for metric in METRICS:
        np.testing.assert_allclose(
            values(table, metric, modality), expected[metric], rtol=1e-9, err_msg=metric
        )


def test_last_state_is_the_one_before_the_final_norm(llava64: VLM) -> None:
    samples = long_samples(1)
    table = layer_geometry(llava64, samples, metrics=["update_ratio"], modalities=["image"])
    enc = llava64.encode(samples, with_reference=True)
    with torch.no_grad():
        out = llava64.model(**enc.inputs, output_hidden_states=True).hidden_states
    normed, before = (out[i][0, enc.is_image[0]].double() for i in (-1, -2))
    artefact = float(((normed - before).norm(dim=-1) / before.norm(dim=-1)).median())
    measured = values(table, "update_ratio", "image")[-1]
    assert abs(measured - artefact) > 0.05 * artefact


def test_batch_and_single_agree(llava64: VLM) -> None:
    samples = [*long_samples(3), tiny.sample(7, images=2, words=90)]
    together = layer_geometry(llava64, samples, batch_size=4)
    single = pd.concat([layer_geometry(llava64, [s]) for s in samples], ignore_index=True)
    pd.testing.assert_frame_equal(together, single, rtol=1e-4, atol=1e-5)


def test_runs_on_a_family_with_model_positions(qwen: VLM) -> None:
    samples = [tiny.sample(0, images=4, words=70), tiny.sample(1, images=5, words=80)]
    table = layer_geometry(qwen, samples, n0=16, n_min=8, k=6)
    assert set(table.loc[table["modality"] == "image", "n_tokens"]) == {16, 20}
    assert table.loc[table["metric"].isin(["entropy", "curvature"]), "value"].notna().all()


def test_too_few_tokens_give_nan_and_the_reason(llava: VLM) -> None:
    table = layer_geometry(llava, [tiny.sample(0), tiny.sample(1, images=0)])
    shown = table[table["sample"] == "s0"]
    matched = shown["metric"].isin(["entropy", "id_twonn", "id_mle"])
    assert shown.loc[matched, "value"].isna().all()
    image = shown[matched & (shown["modality"] == "image")]
    assert set(image["note"]) == {"16 tokens, fewer than n0=64"}
    assert shown.loc[~matched, "value"].notna().all()
    blind = table[(table["sample"] == "s1") & (table["modality"] == "image")]
    assert blind["value"].isna().all() and set(blind["note"]) == {"no image tokens"}
    assert (blind["n_tokens"] == 0).all()
    assert list(blind["layer"]) == list(image_layers(table))


def image_layers(table: pd.DataFrame) -> list[int]:
    """Layers of the image rows of a sample that has an image, metric by metric."""
    rows = table[(table["sample"] == "s0") & (table["modality"] == "image")]
    return [layer for metric in METRICS for layer in rows.loc[rows["metric"] == metric, "layer"]]


def test_sinks_are_dropped_at_every_layer_and_reported(llava64: VLM) -> None:
    samples = [tiny.sample(0, images=2, words=60)]
    handle = llava64.layers[1].register_forward_hook(lambda m, a, out: out + spike(out))

    def spike(out: torch.Tensor) -> torch.Tensor:
        extra = torch.zeros_like(out)
        where = int(llava64.encode(samples, with_reference=True).is_image[0].nonzero()[5])
        extra[0, where] = 100 * out.norm(dim=-1).median()
        return extra

    try:
        dropped = layer_geometry(llava64, samples)
        kept = layer_geometry(llava64, samples, sinks="keep")
        tolerant = layer_geometry(llava64, samples, factor=1e9)
    finally:
        handle.remove()
    image = dropped["modality"] == "image"
    assert set(dropped.loc[image, "n_tokens"]) == {127}
    assert dropped.loc[image, "note"].str.endswith("1 sink tokens left out").all()
    assert set(kept.loc[image, "n_tokens"]) == {128} == set(tolerant.loc[image, "n_tokens"])
    assert not dropped.loc[~image, "note"].str.contains("sink").any()
    # One sink bends the entropy of all others.
    difference = values(kept, "entropy", "image") - values(dropped, "entropy", "image")
    assert abs(difference[2:]).min() > 1e-3


def test_draws_depend_on_the_seed_only(llava64: VLM) -> None:
    samples = [tiny.sample(0, images=2, words=60)]
    one, same, other = (
        layer_geometry(llava64, samples, metrics=["entropy"], draws=3, seed=s) for s in (0, 0, 1)
    )
    pd.testing.assert_frame_equal(one, same)
    gap = values(one, "entropy", "image") - values(other, "entropy", "image")
    assert 0 < abs(gap).max() < 0.02


class Cloud:
    """A "model" whose states are fixed clouds: the pipeline without a transformer."""

    n_layers, name, dtype = 2, "cloud", torch.float32

    def __init__(self, n_tokens: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        scale = np.arange(1, 201) ** -0.5
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(256, 200)))[0].T
        self.states = [
            torch.from_numpy((rng.normal(size=(1, n_tokens, 200)) * scale) @ basis).float()
            for _ in range(3)
        ]

    def encode(self, samples: Sequence, with_reference: bool) -> "Cloud":
        self.samples = samples
        return self

    def mask(self, modality: str) -> torch.Tensor:
        return torch.ones(self.states[0].shape[:2], dtype=torch.bool)


def test_the_subsampler_makes_n_tokens_irrelevant(monkeypatch: pytest.MonkeyPatch) -> None:
    def shows_all(vlm: Cloud, enc: Cloud, visitor) -> None:
        for layer, state in enumerate(vlm.states):
            visitor(layer, state)

    monkeypatch.setattr("visdepth_utils.measure.geometry.layer_geometry.capture", shows_all)

    def means(n_tokens: int) -> pd.DataFrame:
        tables = [
            layer_geometry(
                Cloud(n_tokens, seed),
                [replace(tiny.sample(0), id=f"c{seed}")],
                modalities=["image"],
                cka_gap=1,
            )
            for seed in range(12)
        ]
        table = pd.concat(tables)
        return table[table["layer"] == 1].groupby("metric")["value"].agg(["mean", "std"])

    few, many = means(64), means(576)
    for metric in ("entropy", "id_twonn", "id_mle"):
        gap = abs(few["mean"][metric] - many["mean"][metric])
        assert gap < 3 * few["std"][metric] / np.sqrt(12) + 1e-3, metric
    # The same distribution without matching is far apart, so the test above can fail.
    whole = matrix_entropy(Cloud(576, 0).states[1][0])[0]
    assert abs(whole - few["mean"]["entropy"]) > 0.1
    assert few["mean"]["curvature"] == pytest.approx(120, abs=3)
    assert abs(many["mean"]["cka_ahead"]) < 0.02


@pytest.mark.parametrize(
    "variant",
    [
        {"normalise": "raw"},
        {"normalise": "row"},
        {"normalise": "center"},
        {"alpha": 2.0},
        {"scale": "none"},
        {"method": "linear"},
        {"k": 10},
        {"debiased": False},
    ],
)
def test_variants_reach_their_measure(llava64: VLM, variant: dict) -> None:
    samples = [tiny.sample(0, images=2, words=60)]
    plain = layer_geometry(llava64, samples, modalities=["image"], draws=2)
    varied = layer_geometry(llava64, samples, modalities=["image"], draws=2, **variant)
    changed = {
        metric
        for metric in METRICS
        if not np.allclose(values(plain, metric, "image"), values(varied, metric, "image"))
    }
    option = next(iter(variant))
    assert changed == {
        {"method": "id_twonn", "k": "id_mle", "debiased": "cka_ahead"}.get(option, "entropy")
    }
    if variant.get("normalise"):
        H = states_of(llava64, samples, "image")[2]
        subsets = draws(len(H), 64, 2, ("s0", "image", 0))
        direct = np.mean([matrix_entropy(H[s], **variant)[0] for s in subsets])
        assert values(varied, "entropy", "image")[2] == pytest.approx(direct, rel=1e-6)


@pytest.mark.parametrize("gap", [1, 3])
def test_chunks_of_one_layer_give_the_same_table(llava64: VLM, monkeypatch, gap: int) -> None:
    samples = [tiny.sample(0, images=2, words=60)]
    settings = {"n0": 40, "draws": 2, "normalise": "row", "cka_gap": gap}
    whole = layer_geometry(llava64, samples, **settings)
    monkeypatch.setattr(tracks, "CHUNK_BYTES", 1)
    monkeypatch.setattr(entropy, "CHUNK_ELEMENTS", 1)
    parts = layer_geometry(llava64, samples, **settings)
    pd.testing.assert_frame_equal(whole, parts, rtol=1e-11, atol=1e-12)


def test_one_pass_and_small_batches_where_memory_is_short(llava64: VLM, monkeypatch) -> None:
    batches: list[int] = []
    hook = llava64.layers[0].register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    try:
        plenty = layer_geometry(llava64, long_samples(4), batch_size=4)
        assert batches == [4]
        # Room for one sample's states and a half: 5 states of about 140 tokens, 32 numbers each.
        monkeypatch.setattr(batching, "free_bytes", lambda _: 1.5 * 5 * 140 * 32 * 4 / 0.4)
        short = layer_geometry(llava64, long_samples(4), batch_size=4)
    finally:
        hook.remove()
    assert batches[-4:] == [1, 1, 1, 1]
    pd.testing.assert_frame_equal(plenty, short, rtol=1e-4, atol=1e-5)


def drawn_track(monkeypatch: pytest.MonkeyPatch, states: torch.Tensor, metrics: Sequence) -> list:
    """Measure fixed states; the sizes of all products that were made."""
    made: list[int] = []

    def spy(H: torch.Tensor, **options) -> gram.Gram:
        made.append(H.shape[-2])
        return gram.gram(H, **options)

    monkeypatch.setattr(tracks, "gram", spy)
    options = dict.fromkeys(("entropy", "twonn", "mle", "dimension", "cka"), {})
    n = states.shape[1]
    track = tracks.Track(("s", "i", "image"), n, draws(n, 64, 3), 64, 0, metrics, 2, options)
    track.measure(states)
    assert len(track.rows) > len(states)
    return made


def test_all_products_are_made_for_cka_only(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(4, 200, 8)
    rest = [metric for metric in METRICS if metric != "cka_ahead"]
    assert set(drawn_track(monkeypatch, states, rest)) == {64}
    assert set(drawn_track(monkeypatch, states, METRICS)) == {200}


def test_the_host_waits_for_the_device_equally_often_at_any_depth(monkeypatch) -> None:
    """On the meta device nothing can be read, and tensors of the host cannot be mixed in."""
    waits: list[torch.device] = []

    def stop(values: torch.Tensor) -> np.ndarray:
        waits.append(values.device.type)
        return np.full(tuple(values.shape), 100.0)

    monkeypatch.setattr(gram, "HAVE_FLOAT64", ("meta",))
    for module in (tracks, entropy, dimension):
        monkeypatch.setattr(module, "host", stop)
    counts = []
    for depth in (4, 12):
        waits.clear()
        drawn_track(monkeypatch, torch.empty(depth, 200, 8, device="meta"), METRICS)
        counts.append(len(waits))
        assert set(waits) == {"meta"}
    assert counts[0] == counts[1] <= 6


def test_states_of_a_device_without_float64_are_measured_on_the_host() -> None:
    class Narrow(torch.Tensor):
        """Says that it is on a device that has no float64, and cannot be widened there."""

        device = torch.device("mps")

        def double(self) -> torch.Tensor:
            raise TypeError("no float64")

        def cpu(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    H = torch.randn(40, 8)
    assert torch.equal(gram.gram(H.as_subclass(Narrow)).values, gram.gram(H).values)


def test_what_torch_holds_free_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert batching.free_bytes(torch.device("cuda")) == 1400


def test_progress_and_task_objects(llava64: VLM) -> None:
    from visdepth_utils.data.tasks import Task

    calls: list[tuple[int, int, str]] = []
    task = Task("vqa", [tiny.sample(i) for i in range(3)], 4, "test")
    layer_geometry(
        llava64, task, metrics=["curvature"], batch_size=2, progress=lambda *a: calls.append(a)
    )
    assert calls == [(2, 3, "geometry"), (3, 3, "geometry")]


def test_bad_arguments_are_one_line_errors(llava64: VLM) -> None:
    for kwargs, message in [
        ({"metrics": ["entropie"]}, "metrics=.*use a list out of entropy"),
        ({"metrics": "entropy"}, "use a list"),
        ({"modalities": ["audio"]}, "out of image, text"),
        ({"sinks": "maybe"}, "out of drop, keep"),
        ({"cka_gap": 9}, "cka_gap=9 must be 1..4"),
        ({"normalize": "raw"}, "unknown variant 'normalize': known variants are normalise"),
        ({"normalise": "rows"}, "unknown normalise 'rows'"),
        ({"n0": 1}, "n0 must be at least 2"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            layer_geometry(llava64, [tiny.sample(0)], **kwargs)
        assert "\n" not in str(caught.value)
