"""Adapters: shipped ones are found by what they were trained on, others are trained once."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from visdepth_utils import load_task, load_vlm, truncation_sweep
from visdepth_utils.claims.c6 import cut_depth
from visdepth_utils.claims.registry import claim_entry
from visdepth_utils.data.tasks import Task
from visdepth_utils.data.training_samples import training_samples
from visdepth_utils.data.worlds.world import DISTILL_SEEDS, HELD_OUT_SEEDS, draw_scene, scene_key
from visdepth_utils.measure.distillation import Distillation
from visdepth_utils.measure.recovery import (
    SHIPPED,
    TRAINED,
    adapted,
    adapter,
    chosen,
    distill,
    recovery_sweep,
    registered,
    state_settings,
    training_facts,
    trainings,
)
from visdepth_utils.measure.strategies import decode
from visdepth_utils.models.vlm import VLM
from visdepth_utils.plots.recovery import recovery_dots, strategy_dots

SAMPLES = [tiny.sample(i) for i in range(8)]
TASK = Task("vqa", SAMPLES, 4, "test")
SHORT = Distillation(depth=1, steps=3, batch=2, rate=2e-2)


def test_states_differ_by_one_thing():
    assert state_settings(SHORT, "recovered", 3) == SHORT
    assert state_settings(SHORT, "shuffled", 3) == replace(SHORT, shuffled=True)
    assert state_settings(SHORT, "full trained", 3) == replace(SHORT, depth=3)
    with pytest.raises(ValueError, match="unknown state 'full'"):
        state_settings(SHORT, "full", 3)


def test_an_adapter_is_trained_once_and_found_by_its_facts(llava, tmp_path, capsys):
    options = {"max_new_tokens": 4, "shipped": tmp_path / "none"}
    made = adapter(llava, SAMPLES, SHORT, tmp_path / "own", **options)
    before = (made / "adapter_model.safetensors").read_bytes()
    calls = []
    again = adapter(
        llava, SAMPLES, SHORT, tmp_path / "own", progress=lambda *a: calls.append(a), **options
    )
    assert again == made and not calls  # nothing was trained again
    assert (made / "adapter_model.safetensors").read_bytes() == before
    assert adapter(llava, SAMPLES[1:], SHORT, tmp_path / "own", **options) != made
    capsys.readouterr()
    shipped = tmp_path / "shipped" / "tiny"
    shipped.mkdir(parents=True)
    made.rename(shipped / "vqa-d1")
    options["shipped"] = tmp_path / "shipped"
    assert adapter(llava, SAMPLES, SHORT, tmp_path / "own", **options) == shipped / "vqa-d1"
    assert "shipped in data/adapters/tiny" in capsys.readouterr().out
    other = adapter(llava, SAMPLES, replace(SHORT, seed=1), tmp_path / "own", **options)
    assert other.parent == tmp_path / "own"
    config = json.loads((other / "adapter_config.json").read_text())
    assert str(tmp_path) not in json.dumps(config)
    assert config["base_model_name_or_path"] == llava.name


def by_hand(vlm: VLM, folder: Path) -> VLM:
    """The model with W + alpha / rank B A in the place of every adapted W."""
    config = json.loads((folder / "adapter_config.json").read_text())
    found = load_file(folder / "adapter_model.safetensors")
    model = copy.deepcopy(vlm.model)
    with torch.no_grad():
        for name, down in found.items():
            path, is_down, _ = name.removeprefix("base_model.model.").partition(".lora_A.")
            if is_down:
                up = found[name.replace("lora_A", "lora_B")]
                scale = config["lora_alpha"] / config["r"]
                model.get_submodule(path).weight += scale * up @ down
    return replace(vlm, model=model)


def test_an_adapter_acts_with_its_whole_scale_and_in_its_own_state(llava, tmp_path):
    plain = truncation_sweep(llava, TASK, depths=[1, llava.n_layers])
    folders, outputs = {}, {}
    for seed, state in enumerate(TRAINED):
        settings = replace(state_settings(SHORT, state, llava.n_layers), alpha=24, steps=1)
        folders[state] = distill(llava, SAMPLES, settings, tmp_path / state, max_new_tokens=4)
        file = folders[state] / "adapter_model.safetensors"
        draw = torch.Generator().manual_seed(seed)
        large = {k: torch.randn(v.shape, generator=draw) / 8 for k, v in load_file(file).items()}
        save_file(large, file)
        merged = by_hand(llava, folders[state])
        inputs = llava.encode(SAMPLES).inputs
        with torch.no_grad(), adapted(llava, folders[state]):
            torch.testing.assert_close(
                llava.model(**inputs).logits, merged.model(**inputs).logits, rtol=1e-4, atol=1e-4
            )
        cut = truncation_sweep(merged, TASK, depths=[settings.depth])
        outputs[state] = cut["output"].tolist()
    assert len({tuple(said) for said in outputs.values()}) == len(TRAINED)
    table = recovery_sweep(llava, TASK, 1, folders)
    for state, said in outputs.items():
        assert table.loc[table["state"] == state, "output"].tolist() == said
        depth = table.loc[table["state"] == state, "depth"].iloc[0]
        assert said != plain.loc[plain["depth"] == depth, "output"].tolist()


def test_every_state_says_what_it_says_by_itself(llava, tmp_path):
    folders = {}
    for state in TRAINED:
        settings = state_settings(SHORT, state, llava.n_layers)
        folders[state] = distill(llava, SAMPLES, settings, tmp_path / state, max_new_tokens=4)
    table = recovery_sweep(llava, TASK, 1, folders)
    assert list(dict.fromkeys(table["state"])) == ["truncated", "full", *TRAINED]
    depths = dict(zip(table["state"], table["depth"], strict=True))
    last = llava.n_layers
    assert depths == {
        "truncated": 1,
        "full": last,
        "recovered": 1,
        "shuffled": 1,
        "full trained": last,
    }
    assert set(table["cut"]) == {1} and len(table) == 5 * len(SAMPLES)
    said = table.pivot(index="sample", columns="state", values="output")
    assert said["full"].tolist() == llava.generate(SAMPLES, 4)
    plain = truncation_sweep(llava, TASK, depths=[1])
    assert said["truncated"].tolist() == plain["output"].tolist()
    assert recovery_sweep(llava, TASK, 1).equals(table[table["state"].isin(["truncated", "full"])])
    trained = recovery_sweep(llava, TASK, 1, {"shuffled": folders["shuffled"]}, plain=False)
    assert trained.equals(table[table["state"] == "shuffled"].reset_index(drop=True))
    told = []
    part = {"max_new_tokens": 4, "progress": lambda *now: told.append(now[:2])}
    blocks = [recovery_sweep(llava, SAMPLES[i : i + 4], 1, folders, **part) for i in (0, 4)]
    rows = pd.concat(blocks).set_index(["sample", "state"]).sort_index()
    assert rows["output"].equals(table.set_index(["sample", "state"]).sort_index()["output"])
    half = told[: len(told) // 2]
    assert half == sorted(half) and half[-1] == (4, 4)  # forwards, and no further than the block
    with pytest.raises(ValueError, match="unknown state 'better'"):
        recovery_sweep(llava, TASK, 1, {"better": folders["recovered"]})
    decoded = pd.concat(
        decode(llava, TASK, depth=d, strategies=("greedy", "beam")).assign(state=s)
        for s, d in (("full", 3), ("truncated", 1))
    )
    for figure in (recovery_dots(table), strategy_dots(decoded)):
        assert len(figure.axes) == 1 and figure.axes[0].get_title() == "vqa"
    with pytest.raises(ValueError, match="several cuts"):
        recovery_dots(pd.concat([table, table.assign(cut=2)]))


def test_every_rate_is_tried_and_the_whole_model_has_the_one_with_the_lowest_loss(llava, tmp_path):
    settings = replace(SHORT, steps=6, validation=3, every=2)
    options = {"max_new_tokens": 4, "shipped": tmp_path / "none", "say": lambda _: None}
    rates = [1e-4, 5e-2]
    made = trainings(llava, SAMPLES, settings, rates, tmp_path / "own", **options)
    assert [len(made[state]) for state in TRAINED] == [2, 2, 1]
    lowest = [
        min(loss for *_, loss in json.loads((f / "validation.json").read_text()))
        for f in made["recovered"]
    ]
    best = chosen(made["recovered"])
    assert lowest[0] != lowest[1] and best == made["recovered"][lowest.index(min(lowest))]
    rate = json.loads((best / "distillation.json").read_text())["rate"]
    whole = made["full trained"][0] / "distillation.json"
    assert json.loads(whole.read_text())["rate"] == rate
    table = recovery_sweep(llava, TASK, 1, made)
    own = table[table["state"] == "recovered"].drop_duplicates("rate").set_index("rate")
    assert list(own.index) == rates and set(own["steps"]) == {6} and set(own["seed"]) == {0}
    for folder, curve in zip(made["recovered"], own["curve"], strict=True):
        assert json.loads(curve) == json.loads((folder / "validation.json").read_text())
    assert (table.loc[table["state"] == "full", "curve"] == "").all()

    # Shipped ones of any rate and length count, also where they learnt from fewer samples.
    home = tmp_path / "shipped" / "tiny"
    home.mkdir(parents=True)
    for folder in (f for state in TRAINED for f in made[state]):
        folder.rename(home / folder.name)
    options["shipped"] = tmp_path / "shipped"
    more = [*SAMPLES, tiny.sample(8)]
    found = trainings(llava, more, replace(settings, steps=1), [1e-3], tmp_path / "no", **options)
    names = {state: sorted(f.name for f in made[state]) for state in TRAINED}
    assert {state: sorted(f.name for f in found[state]) for state in TRAINED} == names
    assert not (tmp_path / "no").exists()


def test_precision_is_a_choice_and_a_fact(llava, tmp_path):
    whole = distill(llava, SAMPLES, replace(SHORT, precision="float32"), tmp_path / "a", **BUDGET)
    half = distill(llava, SAMPLES, SHORT, tmp_path / "b", **BUDGET)
    losses = [json.loads((f / "losses.json").read_text()) for f in (whole, half)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    with pytest.raises(ValueError, match="precision 'int8' is unknown"):
        distill(llava, SAMPLES, replace(SHORT, precision="int8"), tmp_path / "c", **BUDGET)
    saved = torch.load(half / "state.pt", weights_only=True)
    assert all(weight.dtype == torch.float32 for weight in saved["weights"])


BUDGET = {"max_new_tokens": 4}


@pytest.mark.parametrize("task", ["caption", "chart", "vqa", "reason"])
def test_training_pictures_are_in_no_held_out_set(task):
    test = load_task(task, n=5)
    made = training_samples(test, 40)
    assert len({sample.id for sample in made}) == len({s.image_id for s in made}) == 40
    kind = "charts" if task == "chart" else "shapes"
    used = {scene_key(draw_scene(seed, kind)) for seed in HELD_OUT_SEEDS[:500]}
    assert all(s.task == task and s.reference and len(s.images) == 1 for s in made)
    numbers = [int(s.image_id.split("-")[1]) for s in made]
    assert set(numbers) <= set(DISTILL_SEEDS)
    assert not used & {scene_key(draw_scene(number, kind)) for number in numbers}
    again = training_samples(test, 10)
    assert [s.id for s in again] == [s.id for s in made[:10]]
    assert not {s.id for s in training_samples(test, 40, seed=1)} & {s.id for s in made}


def test_a_source_trains_on_its_other_pictures(worlds):
    test = load_task("vqa", n=4, source=worlds)
    made = training_samples(test, 99, source=worlds)
    assert len(made) == 4  # two pictures are left, with two questions each
    assert not {s.image_id for s in made} & {s.image_id for s in test.samples}
    whole = load_task("vqa", source=worlds)
    with pytest.raises(ValueError, match="none is left to train on"):
        training_samples(whole, 99, source=worlds)


def shipped() -> list[Path]:
    return sorted(file.parent for file in SHIPPED.glob("*/*/distillation.json"))


FULL = (("caption", "2/3"), ("reason", "1/3"), ("reason", "2/3"), ("vqa", "1/3"))
"""What profile full trains besides, where the cut costs ``base`` something."""


def test_shipped_adapters_are_those_of_the_claim():
    """Facts of every shipped adapter, from the models and data as they are now."""
    entry, found = claim_entry("C6"), {}
    for folder in shipped():
        facts = json.loads((folder / "distillation.json").read_text())
        found.setdefault(folder.parent.name, {})[folder.name] = facts
    assert {"base", "small"} <= set(found)
    for model, adapters in found.items():
        vlm = load_vlm(f"data/minivlm/{model}")
        pairs = [(entry["tasks"][role], entry["depth"]) for role in ("recovers", "does not")]
        for task, part in (*pairs, *(FULL if model == "base" else ())):
            depth = cut_depth({"depth": part}, vlm.n_layers)
            settings = registered(entry["distill"], depth, entry["mode"], **entry["shipped"])
            samples = training_samples(load_task(task, n=2), settings.steps * settings.batch)
            wanted = {
                json.dumps(training_facts(vlm, samples, state_settings(settings, s, vlm.n_layers)))
                for s in TRAINED
            }
            assert wanted <= {json.dumps(facts) for facts in adapters.values()}, (model, task, part)


def test_shipped_folders_hold_no_more_than_is_needed():
    names = {"adapter_config.json", "adapter_model.safetensors", "distillation.json", "losses.json"}
    for folder in shipped():
        assert names <= {file.name for file in folder.iterdir()} <= names | {"validation.json"}
