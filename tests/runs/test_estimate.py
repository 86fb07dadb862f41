"""The preflight: sums by hand, a clock that is ours, refusals with numbers, and no stale record."""

import ast
import fnmatch
import io
import json
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.notebooks.test_reproduce import MEASURE, OPEN, write
from visdepth_utils import __main__ as command
from visdepth_utils.claims.registry import claim_entry, load_claims
from visdepth_utils.common.cells import default_parameters
from visdepth_utils.data.tasks import EMBEDDED
from visdepth_utils.models.vlm import VLM
from visdepth_utils.notebooks.reproduce import ordered_notebooks, reproduce
from visdepth_utils.runs import estimate
from visdepth_utils.runs.run import Run
from visdepth_utils.runs.settings import DEFAULTS, check_settings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ordered_notebooks(ROOT / "notebooks")
STARTED = {"start_s": 4.0, "start_bytes": 4e8, "load_s": 3.0, "weights": 1e9, "layers": 12}
MEASURED = STARTED | {"answer_bytes": 2e9, "answer vqa": 0.5, "answer chart": 1.5}


def pilot_of(notes: dict[str, str] | None = None, **numbers: float) -> pd.DataFrame:
    """What a pilot could have found."""
    rows = [(k, v, (notes or {}).get(k, "")) for k, v in {**MEASURED, **numbers}.items()]
    return pd.DataFrame(rows, columns=["what", "value", "note"])


@pytest.fixture
def costs(tmp_path_factory, monkeypatch) -> dict:
    """A record of two notebooks that is easily multiplied."""
    a = {"tasks": ["vqa", "chart"], "starts": 2.5, "answers": 3, "grows": 1, "copies": 3}
    a |= {"memory": 1e8, "disk": 1e6, "disk_each": 1e3}
    b = {"tasks": [], "starts": 2, "copies": 1, "memory": 2e8, "disk": 5e5}
    name = claim_entry("C6")["notebook"]
    made = {"model": "a/b", "layers": 6, "quick": {"01_a": a, "10_b": b, "00_c": a, name: a}}
    made["full"] = {"01_a": a | {"answers": 6}}
    file = tmp_path_factory.mktemp("costs") / "costs.json"
    file.write_text(json.dumps(made))
    monkeypatch.setattr(estimate, "COSTS", file)
    return made


# --- sums ---


def test_an_estimate_is_the_product_by_hand(costs) -> None:
    table = estimate.estimate({"01_a": 20, "10_b": 0}, pilot_of()).set_index("notebook")
    # 2.5 starts and 3 loads; each of 20 samples 3 answers to both tasks, of twice the layers.
    seconds = 2.5 * 4 + 3 * 3 + 20 * 3 * (0.5 + 1.5) * 2
    assert table.loc["01_a", "minutes"] == pytest.approx(seconds / 60)
    assert table.loc["01_a", "memory_gb"] == pytest.approx(2 + 2 * 1 + 0.1)
    assert table.loc["01_a", "disk_mb"] == pytest.approx(1 + 20 * 1e-3 * 2)
    assert table.loc["10_b", "minutes"] == pytest.approx((2 * 4 + 3) / 60)
    assert table.loc["10_b", "memory_gb"] == pytest.approx(0.4 + 0.2)  # it loads no model
    assert set(table["note"]) == {""}


def test_on_a_gpu_only_its_own_memory_is_counted(costs) -> None:
    table = estimate.estimate({"01_a": 20, "10_b": 0}, pilot_of(start_bytes=0))
    assert table["memory_gb"].tolist() == [4.0, 0.0]


def test_another_profile_is_its_own_record_or_said_to_be_more(costs) -> None:
    quick, full = (
        estimate.estimate({"01_a": 20, "10_b": 0}, pilot_of(), p) for p in ("quick", "full")
    )
    assert full.loc[0, "minutes"] - quick.loc[0, "minutes"] == pytest.approx(20 * 3 * 2 * 2 / 60)
    assert full["note"].tolist() == ["", "at least this: recorded in profile quick"]
    assert full.loc[1, "minutes"] == quick.loc[1, "minutes"]


def test_what_could_not_be_measured_is_named_and_not_counted(costs) -> None:
    measured = pilot_of({"answer chart": "ValueError: no masks"}, **{"answer chart": np.nan})
    table = estimate.estimate({"01_a": 20, "03_new": 5}, measured)
    assert table["note"].tolist() == ["ValueError: no masks", "not recorded"]
    assert 60 * table.loc[0, "minutes"] == pytest.approx(2.5 * 4 + 3 * 3 + 20 * 3 * 0.5 * 2)


def test_training_is_counted_by_its_steps_and_the_answers_to_be_learnt(costs) -> None:
    entry = claim_entry("C6")
    name, rule = entry["notebook"], entry["distill"]
    measured = pilot_of(**{"step vqa": 2.0, "step chart": 3.0, "step_bytes": 5e9, "adapter": 1e6})
    none, both = (
        estimate.estimate({name: 20, "01_a": 20}, measured, trainings=t).set_index("notebook")
        for t in ({}, {"vqa": 5, "chart": 2})
    )
    assert both.loc["01_a"].tolist() == none.loc["01_a"].tolist()
    more = both.loc[name, "minutes"] - none.loc[name, "minutes"]
    pictures, steps = rule["samples"] + rule["validation"], rule["steps"][0]
    assert 60 * more == pytest.approx(steps * (5 * 2 + 2 * 3) + pictures * 2)
    assert both.loc[name, "memory_gb"] == pytest.approx(5 + 0.1)
    assert both.loc[name, "disk_mb"] - none.loc[name, "disk_mb"] == pytest.approx(7)
    assert both.loc[name, "note"].endswith(" to train 7 adapters")
    measured = measured.assign(note=["no room" * (w == "step vqa") for w in measured["what"]])
    some = estimate.estimate({name: 20}, measured, trainings={"vqa": 5, "chart": 2})
    assert some.loc[0, "note"].startswith("no room; of it ")
    assert "2 adapters" in some.loc[0, "note"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 400), st.integers(0, 400), st.integers(1, 80), st.floats(0, 10))
def test_more_samples_and_more_layers_never_cost_less(n, more, layers, answer) -> None:
    names = [source.stem for source in SOURCES]
    answers = {f"answer {task}": answer for task in EMBEDDED}
    few = estimate.estimate(dict.fromkeys(names, n), pilot_of(**answers, layers=layers))
    for other, number in ((layers, n + more), (layers + 1, n)):
        found = pilot_of(**answers, layers=other)
        many = estimate.estimate(dict.fromkeys(names, number), found)
        for column in ("minutes", "memory_gb", "disk_mb"):
            assert (few[column] <= many[column] + 1e-9).all()


# --- the record against the notebooks and the claims ---


def test_every_notebook_is_recorded_and_copies_are_its_models_and_a_controls() -> None:
    names = [source.stem for source in SOURCES]
    assert list(json.loads(estimate.COSTS.read_text())["quick"]) == names
    found = {name: estimate.recorded(name) for name in names}
    assert {name for name in names if found[name]["copies"] == 3} == set(names[1:3])
    assert {name for name in names if found[name]["copies"] == 1} == {names[0], *names[3:]}
    assert [found[name]["grows"] for name in names] == [0, 0, 0, 2, 1, 1, 0, 1, 1, 1, 0]
    assert all(set(one["tasks"]) <= set(EMBEDDED) for one in found.values())
    for claim in load_claims()["claims"].values():  # those that an entry names are among them
        tasks = claim.get("tasks") or [claim.get("task")]
        asked = {t for t in EMBEDDED if f'"{t}"' in json.dumps(tasks)}
        assert asked <= set(estimate.recorded(claim["notebook"], "full")["tasks"])
        asked -= {"vqa", "reason"} if claim["notebook"].startswith("06") else set()  # in full only
        assert asked <= set(found[claim["notebook"]]["tasks"])
    assert found["06_distillation_recovers"]["tasks"] == ["caption", "chart"]


def code_of(source: Path) -> ast.Module:
    cells = nbformat.read(source, as_version=4).cells
    code = [c.source for c in cells if c.cell_type == "code" and "google.colab" not in c.source]
    return ast.parse("\n".join(code))


def kept_names(tree: ast.Module) -> set[str]:
    """Names given to run.table, run.by_block and control_table, with * for what is put in."""
    named_by, out = {"run.table": 0, "run.by_block": 0, "control_table": 1}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in named_by:
            name = node.args[named_by[ast.unparse(node.func)]]
            parts = getattr(name, "values", [name])
            texts = [p.value if isinstance(p, ast.Constant) else "*" for p in parts]
            out.add("".join(texts))
    return out


def test_every_table_that_a_notebook_keeps_was_measured_when_it_was_recorded() -> None:
    """A step that is added to a notebook fails it: python -m tools costs."""
    steps = json.loads(estimate.COSTS.read_text())["steps"]
    patterns = {name for source in SOURCES for name in kept_names(code_of(source))}
    only_full = {"c1_again"}
    unknown = {p for p in patterns - only_full if not fnmatch.filter(steps, p)}
    assert unknown == set()
    assert {s for s in steps if not any(fnmatch.fnmatch(s, p) for p in patterns)} == set()
    added = kept_names(ast.parse('run.table("c4_more", f)\nrun.by_block(f"c4_{a}_{b}", s, f)'))
    assert added == {"c4_more", "c4_*_*"}
    assert not any(fnmatch.filter(steps, name) for name in added)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_default_samples_are_those_of_the_parameters_cell_and_of_the_claim(source: Path) -> None:
    n = default_parameters(source).get("n_samples")
    assert (n is None) == (source.stem == "10_verdicts")
    assert (f"default_n={n}," in source.read_text()) == (n is not None)
    for claim in load_claims()["claims"].values():
        if claim["notebook"] == source.stem and "n_images" in claim:
            assert n == claim["n_images"]


# --- refusals ---


def free(monkeypatch, memory: float, disk: float = 1e12) -> None:
    monkeypatch.setattr(estimate, "free_bytes", lambda device: memory)
    usage = type("usage", (), {"free": disk})
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda folder: usage)


def test_what_fits_passes_and_what_does_not_is_refused_with_numbers_and_a_mend(
    tmp_path, monkeypatch
) -> None:
    rows = [("01_a", 0, 12.3, 50, ""), ("02_b", 0, 1, 50, "")]
    table = pd.DataFrame(rows, columns=estimate.COLUMNS)
    free(monkeypatch, 12.4e9, 101e6)
    told = "it fits: 12.4 GB of memory and 0.1 GB of disk are free"
    assert estimate.check(table, "cpu", tmp_path / "new" / "er") == told
    free(monkeypatch, 8e9, 101e6)
    with pytest.raises(
        ValueError, match=r"01_a takes 12\.3 GB of memory on cuda:1, 8\.0 GB are"
    ) as e:
        estimate.check(table, "cuda:1", tmp_path)
    assert "DTYPE=bfloat16" in str(e.value)
    free(monkeypatch, 13e9, 99e6)
    with pytest.raises(ValueError, match=r"writes 100 MB, 99 MB are free.*N=.*OUT="):
        estimate.check(table, "cpu", tmp_path)


def run_of(model: Path | str, folder: Path, **chosen: object) -> Run:
    given = {**DEFAULTS, "device": "cpu", "model": str(model), **chosen}
    return Run(folder, check_settings(**given))


def test_weights_are_counted_from_the_headers_of_their_files(
    llava: VLM, llava_path: Path, tmp_path: Path, monkeypatch
) -> None:
    count = sum(p.numel() for p in llava.model.parameters())

    def counted(model: Path | str, dtype: str, device: str) -> int:
        monkeypatch.setattr(Run, "device", device)
        return estimate.weights_bytes(run_of(model, tmp_path, dtype=dtype))

    assert counted(llava_path, "auto", "cpu") == 4 * count
    assert counted(llava_path, "bfloat16", "cpu") == 2 * count
    assert counted(llava_path, "auto", "cuda") == 4 * count  # as in the file
    in_file = counted("data/minivlm/base", "auto", "cuda")
    assert counted("data/minivlm/base", "auto", "cpu") == 2 * in_file  # stored in bfloat16


def test_a_run_whose_weights_cannot_fit_is_refused_at_once(tmp_path, monkeypatch) -> None:
    run = run_of("data/minivlm/base", tmp_path / "run")
    estimate.refuse_early(run, SOURCES)
    free(monkeypatch, 5e8 + 60e6)
    with pytest.raises(
        ValueError, match=r"untrained controls takes 0\.6 GB of memory on cpu, 0\.6"
    ):
        estimate.refuse_early(run, SOURCES)  # three copies of 27.5 MB are 82 MB
    free(monkeypatch, 5e8 + 90e6)
    estimate.refuse_early(run, SOURCES)
    free(monkeypatch, 5e8 + 90e6, 1e6)
    with pytest.raises(ValueError, match="writes 11 MB, 1 MB are free"):
        estimate.refuse_early(run, SOURCES)
    assert not run.folder.exists()


# --- which adapters will be trained ---


def test_training_is_asked_for_only_where_no_adapter_is_at_hand(
    llava_path: Path, tmp_path: Path
) -> None:
    entry = claim_entry("C6")
    names = [entry["tasks"]["recovers"], entry["tasks"]["does not"]]
    each = 2 * len(entry["distill"]["rates"]) + 1  # every rate, also shuffled; the whole model once
    assert estimate._trainings(run_of("data/minivlm/base", tmp_path)) == {}
    assert estimate._trainings(run_of("data/minivlm/small", tmp_path)) == {}
    all_of = dict.fromkeys(names, each)
    assert estimate._trainings(run_of("data/minivlm/base", tmp_path, seed=1)) == all_of
    run = run_of(llava_path, tmp_path)
    assert estimate._trainings(run) == all_of
    done = tmp_path / "adapters" / f"{names[0]}-d1-shuffled-0123abcd" / "adapter_model.safetensors"
    done.parent.mkdir(parents=True)
    done.touch()
    assert estimate._trainings(run) == {names[0]: each - 1, names[1]: each}
    full = estimate._trainings(run_of(llava_path, tmp_path / "full", profile="full"))
    assert full == dict.fromkeys([*names, *entry["tasks"]["beside"]], 2 * (each - 1) + 1)


# --- the pilot ---


@pytest.fixture(autouse=True)
def no_imports(monkeypatch) -> None:
    """The process that a pilot starts imports nothing, and so takes no seconds."""
    monkeypatch.setattr(estimate, "START", "print(5)")


def measured_on(model: Path, *tasks: str, **options: object) -> dict[str, float]:
    given = {**DEFAULTS, "device": "cpu", "model": str(model)}
    found = estimate.pilot(given, tasks, **options)
    assert found["note"].notna().all()
    return dict(zip(found["what"], found["value"], strict=True))


@pytest.mark.parametrize(
    ("first", "n", "asked", "answer"),
    [
        (0.5, 8, [1, 8], 0.05),  # the first does not count
        (0.5, 1, [1, 1], 0.05),  # never more samples than the run has
        (30.0, 8, [1], 30.05),  # slow enough for what happens only once to be small
    ],
)
def test_the_pilot_finds_the_costs_of_a_clock_that_is_ours(
    first, n, asked, answer, llava: VLM, llava_path: Path, monkeypatch
) -> None:
    now, calls = [0.0], []

    def evaluated(vlm, task):
        now[0] += 0.05 * len(task) + first * (not calls)
        calls.append(len(task))

    monkeypatch.setattr(estimate, "evaluate", evaluated)
    found = measured_on(llava_path, "vqa", n=n, clock=lambda: now[0])
    assert calls == asked
    assert found["answer vqa"] == pytest.approx(answer)
    assert found["weights"] == 4 * sum(p.numel() for p in llava.model.parameters())
    assert (found["layers"], found["start_bytes"], found["start_s"]) == (llava.n_layers, 5, 0)
    assert found["answer_bytes"] > 1e8  # of this process
    assert "step_bytes" not in found


def test_answers_and_steps_of_training_are_measured_on_a_tiny_model(llava_path: Path) -> None:
    found = measured_on(llava_path, "vqa", "chart", n=2, trained=["vqa"])
    assert 0 < found["answer vqa"] < 60 > found["answer chart"] > 0
    assert found["step vqa"] > 0
    assert found["step_bytes"] >= found["answer_bytes"]
    assert found["adapter"] > 1e3


def test_a_task_that_fails_is_told_and_the_rest_is_measured(llava_path: Path, monkeypatch) -> None:
    real = estimate.load_task

    def load(name, *arguments, **options):
        if name == "chart":
            raise ValueError("not this family\nreally")
        return real(name, *arguments, **options)

    monkeypatch.setattr(estimate, "load_task", load)
    given = {**DEFAULTS, "device": "cpu", "model": str(llava_path)}
    table = estimate.pilot(given, ["chart", "vqa"], n=1).set_index("what")
    assert table.loc["answer chart", "note"] == "ValueError: not this family"
    assert np.isnan(table.loc["answer chart", "value"])
    assert table.loc["answer vqa", "value"] > 0


# --- the command ---


@pytest.fixture
def made_up(monkeypatch) -> list[int]:
    """No pilot is measured: an answer takes a second, a start four."""
    made: list[int] = []

    def fake(settings, tasks, trained, n):
        made.append(n)
        answers = {f"answer {task}": 1.0 for task in tasks}
        steps = {f"step {task}": 1.0 for task in trained} | {"step_bytes": 1e6, "adapter": 1e3}
        return pilot_of(**answers, **steps, weights=1e6, answer_bytes=5e6, start_bytes=1e6)

    monkeypatch.setattr(estimate, "pilot", fake)
    return made


def dry(model: Path, out: Path, **options: object) -> tuple[int, str]:
    stream = io.StringIO()
    chosen = {"model": str(model), "device": "cpu", **options}
    return reproduce(chosen, out, ROOT / "notebooks", stream, dry=True), stream.getvalue()


def test_a_dry_run_prints_the_table_runs_nothing_and_measures_once(
    llava_path: Path, tmp_path: Path, made_up: list[int], monkeypatch
) -> None:
    status, text = dry(llava_path, tmp_path / "run")
    assert status == 0
    lines = text.splitlines()
    names = [source.stem for source in SOURCES]
    assert [line.split()[0] for line in lines if line[:2].isdigit()] == names
    assert lines[1].startswith("about, one after the other: ")
    assert lines[2].endswith(f" on {json.loads(estimate.COSTS.read_text())['model']}")
    cost = estimate.recorded(names[5])
    seconds = 4 * cost["starts"] + 3 + 96 * cost["answers"] * 12 / cost["layers"]
    chains = next(line for line in lines if line.startswith("05_"))
    assert estimate.duration(seconds) in chains
    assert " to train 10 adapters" in next(line for line in lines if line.startswith("06_"))
    assert "it fits:" in lines[-1]
    assert not (tmp_path / "run" / "notebooks").exists()
    assert not (tmp_path / "run" / "claims.json").exists()
    assert dry(llava_path, tmp_path / "few", n_samples=2)[0] == 0
    assert dry(llava_path, tmp_path / "run")[0] == 0
    assert made_up == [16, 2]  # kept like any step
    # Notebook 00 shows the same, though its run has 24 samples where the command has none.
    own = replace(run_of(llava_path, tmp_path / "run", n_samples=24), default_n=24)
    assert chains in estimate.needs_text(own)
    kept = sorted((tmp_path / "run").rglob("*"))
    monkeypatch.setattr(estimate, "refuse_early", lambda run, sources: None)
    free(monkeypatch, 2e6)  # known after the pilot
    status, text = dry(llava_path, tmp_path / "run")
    assert status == 1
    assert "does not fit: " in text.splitlines()[-1]
    assert "GB are free" in text.splitlines()[-1]
    assert sorted((tmp_path / "run").rglob("*")) == kept  # what was there before


def test_a_refused_dry_run_leaves_no_folder(
    llava_path: Path, tmp_path: Path, made_up: list[int], monkeypatch
) -> None:
    (tmp_path / "there").mkdir()
    with monkeypatch.context() as patch:
        free(patch, 2e6)
        patch.setattr(estimate, "refuse_early", lambda run, sources: None)  # known after the pilot
        status, text = dry(llava_path, tmp_path / "there" / "new" / "run")
    assert (status, made_up) == (1, [16]) and "does not fit: " in text
    with monkeypatch.context() as patch:
        free(patch, 2e6)
        assert dry(llava_path, tmp_path / "there" / "new" / "run")[0] == 1  # known before the pilot
    assert made_up == [16]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no such family"), None),  # it is not said not to fit
        (
            RuntimeError("sample 'x' does not fit: out of memory"),
            "does not fit: RuntimeError: sample",
        ),
    ],
)
def test_a_pilot_that_fails_is_one_line_and_leaves_no_folder(
    error, told, llava_path: Path, tmp_path: Path, monkeypatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(estimate, "evaluate" if told else "load_vlm", broken)
    if told:
        status, text = dry(llava_path, tmp_path / "new" / "run")
        assert status == 1
        assert text.splitlines()[-1].startswith(told)
    else:
        with pytest.raises(ValueError, match="^no such family$"):
            dry(llava_path, tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_the_data_lack_is_told_first_and_not_measured(
    llava_path: Path, worlds: Path, tmp_path_factory, monkeypatch
) -> None:
    asked = []

    def fake(settings, tasks, trained, n):
        asked.extend(tasks)
        return pilot_of(**{f"answer {task}": 1.0 for task in tasks}, answer_bytes=1e6, weights=1)

    monkeypatch.setattr(estimate, "pilot", fake)
    status, text = dry(llava_path, tmp_path_factory.mktemp("out") / "run", source=str(worlds))
    assert status == 0 and set(asked) == {"vqa", "reason"}
    lines = text.splitlines()
    assert lines[0].startswith("not testable: C")
    told = [i for i, line in enumerate(lines) if line.startswith("not testable: ")]
    assert told == list(range(len(told)))  # before anything is measured
    shown = [line for line in lines if line[:2].isdigit()]
    assert [line[:2] for line in shown] == ["00", "02", "03", "05", "07", "10"]
    assert "MissingTask" not in text


def test_without_a_pilot_notebook_00_says_what_is_needed_at_least(tmp_path: Path) -> None:
    text = estimate.needs_text(run_of("data/minivlm/base", tmp_path))
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    assert lines[0] == ["weights", "0.03 GB"]
    assert "0.58 GB: 3 copies" in text  # 0.5 GB and three times 27.5 MB
    assert "11 MB" in text
    assert "make reproduce DRY=1" in text
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_has_the_switch_and_a_refusal_is_one_line(
    llava_path: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    write(notebooks / "01_second.ipynb", OPEN, MEASURE)
    free(monkeypatch, 1e12, 5e5)
    arguments = ["reproduce", "--model", str(llava_path), "--out", str(tmp_path / "run")]
    status = command.main([*arguments, "--notebooks", str(notebooks)])
    assert status == 2
    assert "error: the run writes 1 MB" in capsys.readouterr().err
    assert not (tmp_path / "run" / "notebooks").exists()
    heard = {}
    reproduced = "visdepth_utils.notebooks.reproduce.reproduce"
    monkeypatch.setattr(reproduced, lambda *a, **k: heard.update(k) or 1)
    assert command.main([*arguments, "--dry"]) == 1
    assert heard == {"jobs": None, "dry": True}
