"""Write docs/families.md from what the checks find: ``python -m tests.families.status``."""

import warnings
from pathlib import Path

import transformers
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.families.checkpoints import CHECKPOINTS
from tests.families.findings import CHECKS, EXACT, finding, loaded
from visdepth_utils.models.families import UNSUPPORTED

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = """# Families of models

Which Hugging Face models can be measured, and how exactly. Written by
`python -m tests.families.status` from what the tests find with transformers {version}; a test fails
when this page is not what they find.

For every family the tests write a tiny random checkpoint as it lies on the hub (config,
safetensors, the family's own processor, a chat template in its style, a tokenizer with its special
tokens), load it with `load_vlm` and measure samples with one and two pictures of different shapes
in one padded batch.

- **exactly**: equal to naive runs of the untouched model, one per sample, depth, pair of layers and
  token: divergences and states within 1e-5 (states after linear attention, which sums in chunks,
  within 5e-4, those of Idefics2 within 2e-5, of DeepSeek-VL hybrid 5e-5), answers token for token.
- **refused**: `ValueError` with the reason; nothing is approximated in silence.

| | what is checked |
| --- | --- |
| masks | as many image tokens as image features; text is what was said; row tags, breaks, line feeds, begin and end of an image are neither |
| keys | inputs without which a model is silently wrong are there, and demanded |
| states | capture and geometry: states of a padded batch are those of its samples alone |
| truncation | `truncation_sweep` in all modes at all depths |
| grid | `substitution_grid`, image and text states |
| generation | batched, alone, and token by token |
| distillation | trained, stored, loaded, taken off again |

"""  # noqa: E501


def rows() -> list[list[str]]:
    """One row per family: name, class, and what each check found."""
    found = []
    for name, made in CHECKPOINTS.items():
        outcomes = [finding(name, check).outcome for check in CHECKS]
        found.append([made.title, f"`{type(loaded(name).model).__name__}`", *outcomes])
    return found


def notes() -> list[str]:
    """What is refused, or is different in a family, by its name."""
    out = []
    for name, made in CHECKPOINTS.items():
        reasons: dict[str, list[str]] = {}
        for check in CHECKS:
            if note := finding(name, check).note:
                reasons.setdefault(note, []).append(check)
        parts = [f"{' and '.join(checks)}: {note}" for note, checks in reasons.items()]
        caveat = loaded(name).family.caveat
        if text := "; ".join([*([caveat] if caveat else []), *parts]):
            out.append(f"- **{made.title}**: {text}.")
    return out


MAPPING = """## Every class of transformers

What `AutoModelForImageTextToText` knows. *Not tried*: refused at load, in
one line, because the family has no row in `visdepth_utils/models/families.py`; with the package
that its processor or tower needs and the tests do not have.

"""
TIMM = ("fast_vlm", "perception_lm")
"""Families whose tower is one of timm's."""


def _needs(kind: str) -> str:
    """What a family cannot be tried without; "" where all is here."""
    no_pil = "pil" not in (IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {"pil"})
    packages = ["timm"] * (kind in TIMM) + ["torchvision"] * no_pil
    return f": needs {' and '.join(packages)}" if packages else ""


def mapping() -> list[list[str]]:
    """One row per model type of transformers' mapping: type, class, whether it can be measured."""
    exact = {made.kind.model_type: made.title for made in reversed(CHECKPOINTS.values())}
    table = []
    for kind, name in sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()):
        known = f"yes: {exact[kind]}, see above" if kind in exact else f"not tried{_needs(kind)}"
        told = f"refused, because {UNSUPPORTED[kind]}" if kind in UNSUPPORTED else known
        table.append([f"`{kind}`", f"`{name if isinstance(name, str) else name[0]}`", told])
    return table


def page() -> str:
    """The page as the checks have it now."""
    head = ["family", "class", *CHECKS]
    lines = _lines([head, *rows()])
    total = sum(set(row[2:]) == {EXACT} for row in rows())
    summary = f"{len(CHECKPOINTS)} families, {total} of them exact throughout."
    version = transformers.__version__
    parts = [HEAD.format(version=version) + summary, "", *lines, "", *notes(), ""]
    every = _lines([["type", "class", "measured?"], *mapping()])
    return "\n".join([*parts, MAPPING.rstrip(), "", *every, ""])


def _lines(table: list[list[str]]) -> list[str]:
    """A table in Markdown; its first row is the head."""
    head, *body = [f"| {' | '.join(row)} |" for row in table]
    return [head, f"|{' --- |' * len(table[0])}", *body]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
