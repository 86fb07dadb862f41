"""The sweep over hiding interventions: its table, its rules of what stays, its refusals."""

import re

import numpy as np
import pytest
import torch

from tests import tiny
from visdepth_utils.measure.hiding import Hide, attention_of_last, hiding_sweep, visible, windows
from visdepth_utils.measure.patching.prefill import prefill
from visdepth_utils.measure.truncation import truncation_sweep
from visdepth_utils.models.vlm import VLM

SAMPLES = [tiny.sample(0), tiny.sample(1, words=9, reference="blue"), tiny.sample(2, words=4)]
SAME = ["sample", "depth", "output", "n_tokens", "correct", "chrf", "chrf_full"]


@pytest.fixture(params=["llava", "qwen"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return request.getfixturevalue(request.param)


def test_removal_is_the_truncation_sweep(vlm: VLM) -> None:
    removed = truncation_sweep(vlm, SAMPLES, max_new_tokens=3)
    depths = range(vlm.n_layers)
    ours = hiding_sweep(vlm, SAMPLES, [Hide(d) for d in depths], max_new_tokens=3, max_rows=4)
    assert ours["intervention"].value_counts().to_dict() == {
        "remove": len(SAMPLES) * len(depths),
        "none": len(SAMPLES),
    }
    assert ours[SAME].equals(removed[SAME])
    assert np.allclose(ours["kl"], removed["kl"], atol=1e-5)


def test_the_table_says_what_was_done(vlm: VLM) -> None:
    last = vlm.n_layers
    asked = [Hide(1, 2), Hide(0, readers="answer"), Hide(1, share=0.5, rule="norm", draw=3)]
    table = hiding_sweep(vlm, SAMPLES[:1], asked, max_new_tokens=0)
    told = table.set_index("intervention")[["depth", "to", "readers", "share", "rule", "draw"]]
    assert told.loc["window"].tolist() == [1, 2, "all", 0.0, "random", 0]
    assert told.loc["edges"].tolist() == [0, last, "answer", 0.0, "random", 0]
    assert told.loc["partial"].tolist() == [1, last, "all", 0.5, "norm", 3]
    assert table.set_index("intervention").loc["none", "kl"] == 0
    assert (table["kl"] > 0).sum() == len(asked)


def test_nothing_hidden_changes_nothing(vlm: VLM) -> None:
    asked = [Hide(1, 1), Hide(0, share=1.0, rule="stride")]
    table = hiding_sweep(vlm, SAMPLES, asked, max_new_tokens=3)
    assert table["same"].all()
    assert table["kl"].max() < 1e-6


def test_windows() -> None:
    assert [(v.depth, v.to) for v in windows(3, 2)] == [(0, 2), (1, 3)]
    assert len(windows(5)) == len(set(windows(5))) == 15


def test_rules_keep_what_they_say(vlm: VLM) -> None:
    enc = vlm.encode(SAMPLES)
    pre = prefill(vlm, enc, enc.is_image)
    attention = attention_of_last(vlm, enc)

    def kept(b: int, **options) -> list[int]:
        stays = visible(pre, Hide(2, share=0.5, **options), attention)
        assert not (stays & ~enc.is_image).any()
        places = enc.is_image[b].nonzero()[:, 0].tolist()
        return [places.index(i) for i in stays[b].nonzero()[:, 0].tolist()]

    for b in range(len(SAMPLES)):
        places = enc.is_image[b].nonzero()[:, 0]
        n = len(places)
        half = round(0.5 * n)
        assert kept(b, rule="stride") == [int((i + 0.5) * n / half) for i in range(half)]
        state = pre.states[2][b, -n:]
        norms = torch.linalg.vector_norm(state, dim=-1)
        assert kept(b, rule="norm") == sorted(norms.topk(half).indices.tolist())
        seen = attention[1, b, places]
        assert kept(b, rule="attention") == sorted(seen.topk(half).indices.tolist())
        draws = {tuple(kept(b, draw=draw)) for draw in range(5)}
        assert {len(d) for d in draws} == {half}
        assert len(draws) > 1
        assert kept(b, draw=1) == kept(b, draw=1)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        (Hide(3, 2), "0 <= depth <= to"),
        (Hide(-1), "0 <= depth"),
        (Hide(0, 99), "the number of layers"),
        (Hide(0, readers="nobody"), "readers are"),
        (Hide(1, share=0.5, rule="luck"), "rules are"),
        (Hide(1, share=1.5), "share is in 0..1"),
        (Hide(0, share=0.5, rule="attention"), "depth is at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(llava: VLM, variant: Hide, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        hiding_sweep(llava, SAMPLES, [variant])
