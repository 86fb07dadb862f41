"""Bad arguments of the functions that notebooks and users call."""

import itertools
from dataclasses import replace
from functools import cache

import pandas as pd
import safetensors.torch
import torch

from tests import tiny
from tests.bad_input.box import Box, Case
from tests.hubdata import png
from visdepth_utils import load_task, load_vlm, reasoning_sweep, truncation_sweep
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.measure.distillation import Distillation
from visdepth_utils.measure.evaluation import evaluate
from visdepth_utils.measure.recovery import adapted, adapter, state_settings
from visdepth_utils.measure.scores import score
from visdepth_utils.models.vlm import VLM
from visdepth_utils.runs.cache import step
from visdepth_utils.runs.run import open_run

SAMPLES = [tiny.sample(i) for i in range(2)]
GIVEN = Distillation(depth=1, steps=2, batch=2)


@cache
def _loaded(folder: str) -> VLM:
    return load_vlm(folder)


def _model(box: Box) -> VLM:
    return _loaded(str(box.model))


def _cut(box: Box, **options: object) -> pd.DataFrame:
    return truncation_sweep(_model(box), SAMPLES, **{"max_new_tokens": 2, **options})


def _asked(box: Box, prompt: str) -> object:
    box.file("d/a.png", png(0))
    rows = box.file("d/a.jsonl", '{"image": "a.png", "question": "b", "answer": "c"}')
    return load_task("vqa", source=rows, prompt=prompt)


def _open(box: Box, **options: object) -> object:
    given = {"model": str(box.model), "out_dir": str(box.done)}
    return open_run(**{**given, **options})


def _trained(box: Box, file: str, content: str | bytes) -> object:
    """Go on with a training one of whose files is spoilt."""
    options = {"max_new_tokens": 2, "shipped": box.folder / "shipped", "say": lambda _: None}
    if file.startswith("shipped"):
        box.file("shipped/a/b/adapter_model.safetensors", b"")
        box.file("shipped/a/b/distillation.json", content)
        return adapter(_model(box), SAMPLES, GIVEN, box.folder / "adapters", **options)
    folder = adapter(_model(box), SAMPLES, GIVEN, box.folder / "adapters", **options)
    target = next(iter((box.folder / "adapters").glob("targets-*"))) if file == "targets" else None
    (target or folder / file).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    if file.startswith("adapter"):
        with adapted(_model(box), folder):
            return None
    return adapter(_model(box), SAMPLES, GIVEN, box.folder / "adapters", **options)


def _weights(width: int, layers: int = 3) -> bytes:
    """An adapter of the right form for a narrower or shallower model."""
    tensors = {}
    for layer, name in itertools.product(range(layers), ("q_proj", "k_proj", "v_proj", "o_proj")):
        stem = f"base_model.model.model.language_model.layers.{layer}.self_attn.{name}"
        out = width // 2 if name in ("k_proj", "v_proj") else width
        tensors[f"{stem}.lora_A.weight"] = torch.zeros(GIVEN.rank, width)
        tensors[f"{stem}.lora_B.weight"] = torch.zeros(out, GIVEN.rank)
    return safetensors.torch.save(tensors)


def _pickled_adapter(box: Box) -> None:
    box.file("pickled/adapter_config.json", '{"peft_type": "LORA", "r": 1}')
    box.file("pickled/adapter_model.bin", b"x")
    with adapted(_model(box), box.folder / "pickled"):
        pass


TASKS = (
    Case("unknown", lambda b: load_task("vqq"), "task 'vqq'", "known tasks are mcq, vqa"),
    Case("a list", lambda b: load_task(["vqa"]), "task ['vqa']", "known tasks are mcq, vqa"),
    Case("n zero", lambda b: load_task("vqa", 0), "n=0 samples of task 'vqa'", "give at least 1"),
    Case("n negative", lambda b: load_task("vqa", -5), "n=-5 samples", "give at least 1"),
    Case("n large", lambda b: load_task("vqa", 10**9), "n=1000000000 samples", "lower n"),
    Case("n half", lambda b: load_task("vqa", 2.5), "n=2.5 samples", "give a whole number"),
    Case("n text", lambda b: load_task("vqa", "5"), "n='5' samples", "give a whole number"),
    Case("style", lambda b: load_task("reason", 2, style="x"), "no style 'x'", "it has direct"),
    Case(
        "subset", lambda b: load_task("vqa", 2, subset="x"), "subset", "not for data in the layout"
    ),
    Case("condition", lambda b: evaluate(None, None, "bad"), "condition 'bad'", "use full, blind"),
    Case("claim", lambda b: claim_entry("C99"), "claim 'C99'", "registered are C0, C1, C2"),
    Case(
        "rule",
        lambda b: score(replace(SAMPLES[0], rule="guess"), "x"),
        "rule 'guess'",
        "known are letter",
    ),
    Case(
        "prompt", lambda b: _asked(b, "{nothing}"), "prompt '{nothing}'", "its fields are {question"
    ),
    Case("half a prompt", lambda b: _asked(b, "{question"), "prompt '{question'", "its fields are"),
    Case(
        "subset of a table",
        lambda b: load_task(
            "vqa",
            source=b.file("d/a.jsonl", '{"image":"a","question":"b","answer":"c"}'),
            subset="human",
        ),
        "no subset 'human'",
        "it has",
    ),
)

MODELS = (
    Case("attention", lambda b: load_vlm(b.model, attn="flash"), "attn='flash'", "use 'sdpa' or"),
    Case("device", lambda b: load_vlm(b.model, device=""), "device ''", "choose auto, cpu, cuda"),
    Case("dtype", lambda b: load_vlm(b.model, dtype="int8"), "dtype='int8'", "use 'auto'"),
    Case("draw", lambda b: load_vlm(b.model, random_init="all"), "random_init='all'", "use False"),
    Case(
        "seed",
        lambda b: load_vlm(b.model, random_init=True, seed=2**70),
        f"seed={2**70}",
        "give a whole number from 0 to",
    ),
    Case(
        "std",
        lambda b: load_vlm(b.model, random_init=True, init_std=-1),
        "init_std=-1",
        "give a number above 0",
    ),
    Case("map", lambda b: load_vlm(b.model, device_map="all"), "device_map='all'", "use 'auto'"),
    Case(
        "twice placed",
        lambda b: load_vlm(b.model, device="cpu", device_map="auto"),
        "device='cpu' and device_map='auto'",
        "give one of them",
    ),
    Case(
        "hub", lambda b: load_vlm("nobody/no-model"), "'nobody/no-model'", "HF_HUB_OFFLINE is set"
    ),
)

SWEEPS = (
    Case("depth", lambda b: _cut(b, depths=[9]), "depth 9", "is not in 0..3"),
    Case("depth below", lambda b: _cut(b, depths=[-1]), "depth -1", "is not in 0..3"),
    Case("depth half", lambda b: _cut(b, depths=[0.5]), "depth 0.5", "is not in 0..3"),
    Case("depth NaN", lambda b: _cut(b, depths=[float("nan")]), "depth nan", "is not in 0..3"),
    Case("depth text", lambda b: _cut(b, depths=["1"]), "depth '1'", "is not in 0..3"),
    Case("depth true", lambda b: _cut(b, depths=[True]), "depth True", "is not in 0..3"),
    Case("depths number", lambda b: _cut(b, depths=2), "depths 2", "use 'all' or a list"),
    Case("depths word", lambda b: _cut(b, depths="some"), "depths 'some'", "use 'all' or a list"),
    Case("no depths", lambda b: _cut(b, depths=[]), "no depths given", "use 'all' or a list"),
    Case("mode", lambda b: _cut(b, mode="drop"), "mode 'drop'", "use remove, renumber, freeze"),
    Case("way", lambda b: _cut(b, implementation="x"), "implementation 'x'", "use 'masked' or"),
    Case("budget", lambda b: _cut(b, max_new_tokens=-1), "max_new_tokens=-1", "of at least 0"),
    Case(
        "budget text", lambda b: _cut(b, max_new_tokens="9"), "max_new_tokens='9'", "give a whole"
    ),
    Case(
        "blind",
        lambda b: truncation_sweep(_model(b), [replace(SAMPLES[0], images=())], max_new_tokens=1),
        "sample 's0' has no image tokens",
        "give samples with images",
    ),
    Case(
        "control token in a prompt",
        lambda b: truncation_sweep(
            _model(b), [replace(SAMPLES[0], prompt="an <image> ?")], max_new_tokens=1
        ),
        "sample 's0': its text contains '<image>', which the tokenizer",
        "take it out",
    ),
    Case(
        "no picture to swap",
        lambda b: reasoning_sweep(_model(b), SAMPLES[:1], max_new_tokens=1),
        "at least 2 different images, got 1",
        "raise n",
    ),
    Case(
        "state",
        lambda b: state_settings(GIVEN, "tired", 3),
        "state 'tired'",
        "use one of recovered",
    ),
)

PARAMETERS = (
    Case("model", lambda b: _open(b, model=5), "model 5", "give a folder"),
    Case("no model", lambda b: _open(b, model=None), "model None", "give a folder"),
    Case("source", lambda b: _open(b, source=5), "source 5", "give a folder, a file or a hub id"),
    Case("source list", lambda b: _open(b, source=["a"]), "source ['a']", "give a folder, a file"),
    Case("n_samples", lambda b: _open(b, n_samples="many"), "n_samples 'many'", "a whole number"),
    Case("n true", lambda b: _open(b, n_samples=True), "n_samples True", "a whole number"),
    Case("n float", lambda b: _open(b, n_samples=3.0), "n_samples 3.0", "a whole number"),
    Case("seed", lambda b: _open(b, seed=None), "seed None", "give a whole number"),
    Case("device", lambda b: _open(b, device=0), "device 0", "choose auto, cpu"),
    Case("dtype", lambda b: _open(b, dtype=["float32"]), "dtype ['float32']", "choose one of"),
    Case("profile", lambda b: _open(b, profile=None), "profile None", "choose one of quick"),
    Case("out_dir", lambda b: _open(b, out_dir=5), "out_dir 5", "give a folder as text"),
    Case(
        "out_dir file", lambda b: _open(b, out_dir=b.folder / "file"), "{box}/file/", "another fold"
    ),
)

CACHES = (
    Case(
        "name of a step",
        lambda b: step(b.done / "tables", "../x", pd.DataFrame, {}),
        "'../x'",
        "use letters, digits",
    ),
    Case(
        "key",
        lambda b: step(b.done / "tables", "x", pd.DataFrame, {"a": b}),
        "(Box",
        "use strings, numbers",
    ),
    Case(
        "no table",
        lambda b: step(b.done / "tables", "x", lambda: 5, {}),
        "step 'x' returned int",
        "must return a DataFrame",
    ),
    Case(
        "mixed column",
        lambda b: step(b.done / "tables", "x", lambda: pd.DataFrame({"a": [1, "b"]}), {}),
        "step 'x' made a table that parquet cannot hold",
        "give each column one type",
    ),
)

ADAPTERS = (
    Case("pickled", _pickled_adapter, "no adapter_model.safetensors in {box}/pickled", "train it"),
    Case(
        "half",
        lambda b: _trained(b, "adapter_model.safetensors", b"x"),
        "{box}/adapters/vqa-d1-",
        "check the folder's files",
    ),
    Case(
        "of another model",
        lambda b: _trained(b, "adapter_model.safetensors", _weights(8)),
        "{box}/adapters/vqa-d1-",
        "check the folder's files",
    ),
    Case(
        "a layer gone",
        lambda b: _trained(b, "adapter_model.safetensors", _weights(32, layers=1)),
        "the adapter in {box}/adapters/vqa-d1-",
        "train one for this",
    ),
    Case(
        "config", lambda b: _trained(b, "adapter_config.json", "{"), "{box}/adapters/", "check the"
    ),
    Case("state", lambda b: _trained(b, "state.pt", b"x"), "state.pt is no state of", "delete it"),
    Case(
        "facts", lambda b: _trained(b, "distillation.json", "{"), "distillation.json", "delete or"
    ),
    Case("targets", lambda b: _trained(b, "targets", "[1]"), "targets-vqa-", "delete or restore"),
    Case("other targets", lambda b: _trained(b, "targets", "{}"), "targets-vqa-", "delete it"),
    Case(
        "shipped",
        lambda b: _trained(b, "shipped", "{"),
        "shipped/a/b/distillation.json",
        "delete or restore it",
    ),
)
