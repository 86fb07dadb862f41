"""What a loaded checkpoint can be measured with: each check runs public functions and finds out.

A check raises AssertionError where a number is wrong. What is refused must be refused by name, and
counts as such; what passes is exact: it equals naive runs of the untouched model.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families import naive
from tests.families.checkpoints import CHECKPOINTS
from tests.families.words import words_of
from visdepth_utils import layer_geometry, load_vlm, substitution_grid, truncation_sweep
from visdepth_utils.data.samples import Sample
from visdepth_utils.measure.distillation import Distillation
from visdepth_utils.measure.patching.branches import MODES, check_depths, replaceable
from visdepth_utils.measure.recovery import adapted, distill
from visdepth_utils.measure.truncation import kl_divergence
from visdepth_utils.models.checks import image_features
from visdepth_utils.models.encoding import Encoded
from visdepth_utils.models.generation import decode_answers, stop_ids
from visdepth_utils.models.hooks import capture
from visdepth_utils.models.vlm import VLM

CLOSE = 1e-5
LESS_CLOSE = {"qwen3_5": 5e-4, "qwen3_5_moe": 5e-4, "idefics2": 2e-5, "deepseek_vl_hybrid": 5e-5}
"""Linear attention sums in chunks, towers over padded or many pixels; in float64 all agree."""
STEPS = 3
EXACT, REFUSED = "exactly", "refused"


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    outcome: str  # EXACT or REFUSED
    note: str = ""  # why it is refused, or what of it is


def picture(seed: int, width: int, height: int) -> Image.Image:
    """A noise picture."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def sample(name: str, sizes: Sequence[tuple[int, int]], prompt: str, reference: str) -> Sample:
    """A sample that shows noise of these sizes."""
    images = tuple(picture(i + len(prompt), *size) for i, size in enumerate(sizes))
    return Sample(name, f"i{name}", images, prompt, reference, reference, "vqa")


SAMPLES = (
    sample("square", [(32, 32)], "what is left ?", "red circle"),
    sample("two", [(64, 32), (32, 32)], "how many one two three", "blue"),
    sample("tall", [(32, 64)], "is the square red ? look at it", "yes it is red"),
)


@cache
def loaded(name: str) -> VLM:
    """The family's checkpoint, written into a folder and loaded from there."""
    with tempfile.TemporaryDirectory() as folder:
        return load_vlm(CHECKPOINTS[name].write(Path(folder) / name))


def alone(vlm: VLM, with_reference: bool = False) -> list[Encoded]:
    """Every sample as a batch of its own."""
    return [vlm.encode([each], with_reference) for each in SAMPLES]


def spans(name: str) -> Finding:
    """Placeholders equal features, text is what was said, structural tokens are in neither mask."""
    vlm, made = loaded(name), CHECKPOINTS[name]
    enc = vlm.encode(SAMPLES, with_reference=True)
    assert not (enc.is_image & enc.is_text).any()
    assert not ((enc.is_image | enc.is_text) & ~enc.inputs["attention_mask"].bool()).any()
    assert len(set(enc.inputs["attention_mask"].sum(-1).tolist())) > 1  # there is padding
    tokens = vlm.tokenizer.convert_ids_to_tokens
    for b, (each, one) in enumerate(zip(SAMPLES, alone(vlm), strict=True)):
        n = len(each.images)
        expected = sum(
            made.several if made.several and n > 1 else made.size(*image.size)
            for image in each.images
        )
        assert int(enc.is_image[b].sum()) == int(one.is_image.sum()) == expected
        assert _features(vlm, one) == expected
        said = made.said.format(images=made.per_image * n, prompt=each.prompt)
        text = words_of(vlm.tokenizer.decode(enc.inputs["input_ids"][b][enc.is_text[b]]))
        assert text == words_of(f"{said} {each.reference}"), text
        neither = enc.inputs["attention_mask"][b].bool() & ~enc.is_image[b] & ~enc.is_text[b]
        found = set(tokens(enc.inputs["input_ids"][b][neither]))
        assert set(made.structural) <= found | ({"\n"} if name == "gemma3" else set())
        first, last = enc.is_image[b].nonzero()[[0, -1], 0].tolist()
        if n == 1:  # nothing within the image is text
            assert not enc.is_text[b, first:last].any()
    return Finding(EXACT)


def _features(vlm: VLM, enc: Encoded) -> int:
    text = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids"}
    given = {k: v for k, v in enc.inputs.items() if k not in text}
    with torch.no_grad():
        return sum(part.shape[:-1].numel() for part in image_features(vlm, given))


def keys(name: str) -> Finding:
    """What the model needs beside ids and pixels is there; a processor without it is refused."""
    vlm = loaded(name)

    class Forgetful:
        def __init__(self, lost: str) -> None:
            self.lost = lost

        def __getattr__(self, attribute: str) -> object:
            return getattr(vlm.processor, attribute)

        def __call__(self, **kwargs: object) -> dict[str, torch.Tensor]:
            batch = dict(vlm.processor(**kwargs))
            del batch[self.lost]
            return batch

    enc = vlm.encode(SAMPLES)
    for key in vlm.family.required_keys:
        assert key in enc.inputs
        with pytest.raises(ValueError, match=f"returned no {key}"):
            replace(vlm, processor=Forgetful(key)).encode(SAMPLES)
    return Finding(EXACT)


def states(name: str) -> Finding:
    """States of a padded batch are those of samples alone; the geometry of them is defined."""
    vlm = loaded(name)
    close = LESS_CLOSE.get(name, CLOSE)
    together: list[torch.Tensor] = []
    enc = vlm.encode(SAMPLES, with_reference=True)
    capture(vlm, enc, lambda _, state: together.append(state.clone()))
    for b, one in enumerate(alone(vlm, with_reference=True)):
        for layer, expected in enumerate(naive.layer_inputs(vlm, one)):
            for modality in ("image", "text"):
                mine = together[layer][b][enc.mask(modality)[b]]
                assert _apart(mine, expected[one.mask(modality)[0]]) <= close, (b, layer)
    table = layer_geometry(vlm, SAMPLES, n0=4, draws=3, n_min=3, k=2, cka_gap=1)
    measured = table.dropna(subset="value").groupby(["modality", "metric"])["layer"].nunique()
    assert set(table["modality"]) == {"image", "text"} and len(measured) == 12
    assert measured.min() >= vlm.n_layers - 1
    return Finding(EXACT)


def truncation(name: str) -> Finding:
    """Every depth of every mode: divergence and tokens of one naive run each."""
    vlm = loaded(name)
    if refused := _refused(lambda: truncation_sweep(vlm, SAMPLES, max_new_tokens=STEPS)):
        return refused
    ones = {each.id: vlm.encode([each]) for each in SAMPLES}
    note = ""
    for mode in MODES:
        table = truncation_sweep(
            vlm, SAMPLES, mode=mode, max_new_tokens=STEPS, with_token_ids=True
        ).set_index(["sample", "depth"])
        depths = check_depths(vlm, "all", mode)
        assert len(table) == len(SAMPLES) * len(depths)
        if depths[0]:
            note = f"mode {mode!r} from depth {depths[0]} on"
        # All samples were in the batch; where another mode goes wrong, two show it.
        for each in SAMPLES if mode == "remove" else SAMPLES[1:]:
            full = naive.run(vlm, ones[each.id])[-1]
            for depth in depths:
                logits_of = partial(_truncated, vlm, depth, mode)
                row = table.loc[(each.id, depth)]
                said, first = _answer(vlm, logits_of, ones[each.id], STEPS)
                where = (mode, each.id, depth)
                assert abs(row["kl"] - float(kl_divergence(full, first))) <= CLOSE, where
                assert row["token_ids"] == said, where
        assert table["kl"].max() > 0.01  # the image matters, or equality would prove nothing
    return Finding(EXACT, note)


def grid(name: str) -> Finding:
    """Every pair of layers: divergence and tokens of one naive run each."""
    vlm = loaded(name)
    if refused := _refused(lambda: substitution_grid(vlm, SAMPLES, max_new_tokens=2)):
        return refused
    note = ""
    for modality in ("image", "text"):
        table = substitution_grid(
            vlm, SAMPLES, modality=modality, controls=(), max_new_tokens=2
        ).set_index(["sample", "source_layer", "layer"])
        for each in SAMPLES[:2]:
            one = vlm.encode([each])
            inputs, where = naive.layer_inputs(vlm, one), replaceable(one, modality)[0]
            full = naive.run(vlm, one)[-1]
            for source_layer, layer in table.loc[each.id].index:
                logits_of = partial(_substituted, vlm, layer, where, inputs[source_layer])
                row = table.loc[(each.id, source_layer, layer)]
                said, first = _answer(vlm, logits_of, one, 2)
                at = (modality, each.id, source_layer, layer)
                assert abs(row["kl"] - float(kl_divergence(full, first))) <= CLOSE, at
                assert row["output"] == decode_answers(vlm, [said])[0], at
        assert table["kl"].max() > 0.01
        if modality == "image" and (first_layer := table.index.get_level_values("layer").min()):
            note = f"image states from layer {first_layer} on"
    return Finding(EXACT, note)


def generation(name: str) -> Finding:
    """A batch answers as its samples do alone, and as greedy decoding by whole runs does."""
    vlm = loaded(name)
    batched = vlm.generate(SAMPLES, STEPS)
    assert batched == [vlm.generate([each], STEPS)[0] for each in SAMPLES]
    for answer, one in zip(batched, alone(vlm), strict=True):
        said, _ = _answer(vlm, lambda enc: naive.run(vlm, enc)[-1], one, STEPS)
        assert answer == decode_answers(vlm, [said])[0]
    return Finding(EXACT)


def distillation(name: str) -> Finding:
    """Two steps train an adapter; it changes the truncated model when loaded, and only then."""
    vlm = loaded(name)
    settings = Distillation(depth=1, steps=2, batch=2, rate=1e-2)
    with tempfile.TemporaryDirectory() as folder:

        def run() -> Path:
            return distill(vlm, SAMPLES, settings, Path(folder) / "a", max_new_tokens=2)

        if refused := _refused(run):
            return refused
        before = truncation_sweep(vlm, SAMPLES, depths=[1], max_new_tokens=0)["kl"]
        with adapted(vlm, Path(folder) / "a"):
            learned = truncation_sweep(vlm, SAMPLES, depths=[1], max_new_tokens=0)["kl"]
        after = truncation_sweep(vlm, SAMPLES, depths=[1], max_new_tokens=0)["kl"]
    assert before.equals(after) and (before - learned).abs().min() > 1e-4
    return Finding(EXACT)


CHECKS: dict[str, Callable[[str], Finding]] = {
    "masks": spans,
    "keys": keys,
    "states": states,
    "truncation": truncation,
    "grid": grid,
    "generation": generation,
    "distillation": distillation,
}


@cache
def finding(name: str, check: str) -> Finding:
    """What a check found for a family; it is made once in a process."""
    return CHECKS[check](name)


def _refused(run: Callable[[], object]) -> Finding | None:
    """The refusal of a family that cannot be measured so, if it is one by name."""
    try:
        run()
    except ValueError as error:
        message = str(error)
        assert "linear_attention" in message, message
        return Finding(REFUSED, message.split(": ", 1)[1])
    return None


def _longer(vlm: VLM, enc: Encoded, ids: Sequence[int]) -> Encoded:
    """One prompt with tokens behind it."""
    n, more = enc.is_image.shape[1], len(ids)
    behind = {
        "input_ids": list(ids),
        "attention_mask": [1] * more,
        "position_ids": list(range(n, n + more)),
        "mm_token_type_ids": [0] * more,
        "token_type_ids": [0 if vlm.family.causal_prefix else 1] * more,
    }
    inputs = {
        key: torch.cat([value, torch.tensor([behind[key]], dtype=value.dtype)], 1)
        if key in behind
        else value
        for key, value in enc.inputs.items()
    }
    masks = [torch.nn.functional.pad(mask, (0, more)) for mask in (enc.is_image, enc.is_text)]
    return Encoded(inputs, *masks, enc.samples)


def _answer(
    vlm: VLM, logits_of: Callable[[Encoded], torch.Tensor], enc: Encoded, steps: int
) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens, each by a whole run on the prompt with all earlier ones; the first logits."""
    first = logits_of(enc)
    said, logits = [], first
    while len(said) < steps and int(logits.argmax()) not in stop_ids(vlm):
        said.append(int(logits.argmax()))
        if len(said) < steps:
            logits = logits_of(_longer(vlm, enc, said))
    return said, first


def _truncated(vlm: VLM, depth: int, mode: str, enc: Encoded) -> torch.Tensor:
    """Logits of the next token with the image gone from a layer on."""
    return naive.truncate(vlm, vlm.family.model_type, enc, depth, mode)[-1]


def _substituted(
    vlm: VLM, layer: int, where: torch.Tensor, states: torch.Tensor, enc: Encoded
) -> torch.Tensor:
    """Logits of the next token with states of a prompt put in, whatever was said after it."""
    more = enc.is_image.shape[1] - len(where)
    here = torch.nn.functional.pad(where, (0, more))
    put = torch.nn.functional.pad(states, (0, 0, 0, more))
    return naive.substitute(vlm, enc, layer, here, put)[-1]


def _apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """Largest difference, per 10 where values are larger than that."""
    return float((one - two).abs().max() / max(1.0, float(two.abs().max()) / 10))
