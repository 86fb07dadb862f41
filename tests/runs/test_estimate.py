"""The preflight: sums by hand, a clock that is ours, refusals with numbers, and no stale list."""

import ast
import fnmatch
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.notebooks.test_reproduce import MEASURE, OPEN, write
from visdepth_utils import __main__ as command
from visdepth_utils.claims.registry import load_claims
from visdepth_utils.common.cells import default_parameters
from visdepth_utils.measure.recovery import SHIPPED
from visdepth_utils.models.vlm import VLM
from visdepth_utils.notebooks.reproduce import ordered_notebooks, reproduce
from visdepth_utils.runs.estimate import pilot, plan
from visdepth_utils.runs.estimate.plan import NOTEBOOK_DISK, OVERHEAD, check, copies, estimate
from visdepth_utils.runs.estimate.steps import (
    BESIDE_SAMPLES,
    BLOCKS,
    DECODED,
    NOTEBOOKS,
    PHYSICAL_SAMPLES,
    REFERENCE_COUNTS,
    REFERENCE_DEPTHS,
    REFERENCE_REPEATS,
    Size,
    Step,
    steps_of,
)
from visdepth_utils.runs.run import Run
from visdepth_utils.runs.settings import check_settings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ordered_notebooks(ROOT / "notebooks")
PICTURE = (("picture", True),)
START = pilot.START


def row(kind: str, task: str = "", options: tuple = (), **numbers: float | str) -> dict:
    zeros = dict.fromkeys(pilot.COLUMNS[3:-1], 0.0)
    return {
        "kind": kind,
        "task": task,
        "options": json.dumps(options),
        **zeros,
        "note": "",
        **numbers,
    }


def pilot_of(steps: list[Step], **numbers: float) -> pd.DataFrame:
    """The same made-up costs for everything that some steps need."""
    probes_ = dict.fromkeys(step.probe for step in steps)
    return pd.DataFrame([row("start", unit_s=4.0), *(row(*probe, **numbers) for probe in probes_)])


# --- the line through two measurements ---


@pytest.mark.parametrize(
    ("n", "y", "line"),
    [
        ((1, 5), (3.0, 11.0), (1.0, 2.0)),
        ((2, 8), (4.0, 4.0), (4.0, 0.0)),  # a step costs the same for two as for eight
        ((2, 8), (4.0, 3.0), (3.0, 0.0)),  # noise: the second was faster
        ((1, 4), (1.0, 8.0), (0.0, 2.0)),  # more than in proportion: nothing is fixed
        ((2, 2), (6.0, 6.0), (0.0, 3.0)),  # one measurement
    ],
)
def test_two_measurements_give_a_fixed_cost_and_one_per_sample(n, y, line) -> None:
    assert pilot.line_through(n, y) == pytest.approx(line)


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.floats(0, 99), st.floats(0, 99))
def test_no_line_has_a_cost_below_zero_and_all_meet_the_second_point(sizes, low, high) -> None:
    few, many = sorted(sizes)
    fixed, each = pilot.line_through((few, many), (low, high))
    assert fixed >= 0
    assert each >= 0
    assert fixed + each * many == pytest.approx(high)


# --- sums ---


def test_an_estimate_is_the_sum_by_hand() -> None:
    measured = pd.DataFrame(
        [
            row("start", unit_s=4.0, unit_bytes=4e8),
            row("load", "trained", unit_s=3.0, unit_bytes=1e9),
            row("load", "decoder", unit_s=5.0, unit_bytes=1e9),
            row(
                *("evaluate", "vqa", PICTURE),
                call_s=2.0,
                unit_s=0.5,
                call_bytes=7e6,
                unit_bytes=1e6,
                call_disk=100,
                unit_disk=10,
            ),
            row("distill", "vqa", unit_s=1.5, unit_bytes=2e6, call_disk=1e6),
        ]
    )
    work = {
        "01_a": [
            Step("", "load", "trained"),
            Step("", "load", "decoder", times=2),
            Step("x", "evaluate", "vqa", 70, 2, PICTURE),  # 3 blocks of 32, twice
            Step("", "distill", "vqa", 200, 3),
        ],
        "02_b": [],
    }
    table = estimate(work, measured).set_index("notebook")
    seconds = OVERHEAD * 4 + 3 + 2 * 5 + (2 * 3 * 2.0 + 2 * 70 * 0.5) + 3 * 200 * 1.5
    assert table.loc["01_a", "minutes"] == pytest.approx(seconds / 60)
    # The process, the model and a decoder drawn beside one that is read, and a block of 32.
    held = 4e8 + plan.FIGURES_MEMORY + 3e9 + 7e6 + 32 * 1e6
    assert table.loc["01_a", "memory_gb"] == pytest.approx(held / 1e9)
    assert table.loc["01_a", "note"] == "of it 15 min 00 s to train 3 adapters"
    disk = NOTEBOOK_DISK + (6 * 100 + 140 * 10) + 3 * 1e6
    assert table.loc["01_a", "disk_mb"] == pytest.approx(disk / 1e6)
    assert table.loc["02_b", "minutes"] == pytest.approx(OVERHEAD * 4 / 60)
    held = 4e8 + plan.FIGURES_MEMORY
    assert table.loc["02_b", "memory_gb"] == pytest.approx(held / 1e9)


def test_on_a_gpu_only_its_own_memory_is_counted() -> None:
    measured = pd.DataFrame([row("start", unit_s=4.0), row("load", "trained", unit_bytes=6e9)])
    table = estimate({"01_a": [Step("", "load", "trained")]}, measured)
    assert table["memory_gb"].tolist() == [6.0]


def test_what_could_not_be_measured_is_named_and_not_counted() -> None:
    steps = [
        Step("", "load", "trained"),
        Step("t", "token_kl", "vqa", 9),
        Step("u", "decode", "vqa", 9),
    ]
    measured = pilot_of(steps[:1], unit_s=3.0)
    lines = [row("token_kl", "vqa", note="ValueError: no masks"), row("decode", "vqa", unit_s=1.0)]
    table = estimate({"01_a": steps}, pd.concat([measured, pd.DataFrame(lines)]))
    assert table.loc[0, "note"] == "ValueError: no masks"
    assert table.loc[0, "minutes"] == pytest.approx((OVERHEAD * 4 + 3 + 9) / 60)


def test_without_a_task_its_notebook_ends_after_loading_and_00_shows_what_there_is() -> None:
    steps = [
        Step("", "load", "trained"),
        Step("accuracy", "evaluate", "vqa", 10),
        Step("accuracy", "evaluate", "chart", 10),
    ]
    lines = [
        row("start", unit_s=4.0),
        row("load", "trained", unit_s=3.0),
        row("evaluate", "vqa", unit_s=1.0),
        row("evaluate", "chart", note="MissingTask: no charts"),
    ]
    other = [steps[0], *(Step("t", step.kind, step.task, 10) for step in steps[1:])]
    table = estimate({"00_start_here": steps, "04_x": other}, pd.DataFrame(lines))
    first, second = table.itertuples()
    assert first.note == ""
    assert 60 * first.minutes == pytest.approx(OVERHEAD * 4 + 3 + 10)
    assert second.note == "MissingTask: no charts"
    assert 60 * second.minutes == pytest.approx(OVERHEAD * 4 + 3)


@pytest.mark.parametrize("name", NOTEBOOKS)
@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(0, 400),
    st.booleans(),
    st.lists(st.floats(0, 10), min_size=6, max_size=6),
)
def test_more_samples_never_cost_less(name, n, more, full, costs) -> None:
    sizes = [Size(n, full), Size(n + more, full), Size(n, True)]
    works = [steps_of(name, size) for size in sizes]
    numbers = dict(zip(pilot.COLUMNS[3:-1], costs, strict=True))
    measured = pilot_of([step for steps in works for step in steps], **numbers)
    few, many, whole = (estimate({name: steps}, measured).iloc[0] for steps in works)
    for column in ("minutes", "memory_gb", "disk_mb"):
        assert few[column] <= many[column] + 1e-9
        assert few[column] <= whole[column] + 1e-9  # profile full measures what quick does


# --- refusals ---


def needs(memory_gb: float, disk_mb: float) -> pd.DataFrame:
    rows = [("01_a", memory_gb, disk_mb), ("02_b", memory_gb / 2, disk_mb)]
    return pd.DataFrame(rows, columns=["notebook", "memory_gb", "disk_mb"])


def test_what_fits_passes_and_what_does_not_is_refused_with_numbers_and_a_mend() -> None:
    check(needs(1.0, 50), 1.1e9, 101e6)
    with pytest.raises(
        ValueError, match=r"01_a takes 12\.3 GB of memory on cuda:1, 8\.0 GB are"
    ) as e:
        check(needs(12.3, 50), 8e9, 101e6, "cuda:1")
    assert "DTYPE=bfloat16" in str(e.value)
    with pytest.raises(ValueError, match=r"writes 100 MB, 99 MB are free.*N=.*OUT="):
        check(needs(1.0, 50), 8e9, 99e6)


def test_a_pilot_that_ran_out_of_memory_is_a_refusal_too() -> None:
    check(needs(1.0, 50).assign(note="ValueError: no masks"), 2e9, 1e9)
    with pytest.raises(ValueError, match="01_a: RuntimeError: sample 'x' does not fit into memory"):
        note = ["RuntimeError: sample 'x' does not fit into memory with a single row", ""]
        check(needs(1.0, 50).assign(note=note), 2e9, 1e9)


def test_weights_are_counted_from_the_headers_of_their_files(llava: VLM, llava_path: Path) -> None:
    count = sum(p.numel() for p in llava.model.parameters())
    assert plan.weights_bytes(llava_path, "auto", "cpu") == 4 * count
    assert plan.weights_bytes(llava_path, "bfloat16", "cpu") == 2 * count
    assert plan.weights_bytes(llava_path, "auto", "cuda") == 4 * count  # as in the file
    base = ROOT / "data" / "minivlm" / "base"
    in_file = plan.weights_bytes(base, "auto", "cuda")
    assert plan.weights_bytes(base, "auto", "cpu") == 2 * in_file  # stored in bfloat16


def run_of(model: Path | str, folder: Path, **chosen: object) -> Run:
    defaults = {"source": None, "n_samples": None, "seed": 0, "device": "cpu", "dtype": "auto"}
    return Run(
        folder, check_settings(**{**defaults, "model": str(model), "profile": "quick", **chosen})
    )


def test_a_run_whose_weights_cannot_fit_is_refused_at_once(tmp_path, monkeypatch) -> None:
    run = run_of("data/minivlm/base", tmp_path / "run")
    plan.refuse_early(run, SOURCES)
    monkeypatch.setattr(plan, "free_memory", lambda device: 5e8 + 60e6)
    with pytest.raises(
        ValueError, match=r"untrained controls takes 0\.6 GB of memory on cpu, 0\.6"
    ):
        plan.refuse_early(run, SOURCES)  # three copies of 27.5 MB are 82 MB
    monkeypatch.setattr(plan, "free_memory", lambda device: 5e8 + 90e6)
    plan.refuse_early(run, SOURCES)
    monkeypatch.setattr(plan, "free_disk", lambda folder: 1e6)
    with pytest.raises(ValueError, match="writes 11 MB, 1 MB are free"):
        plan.refuse_early(run, SOURCES)
    assert not run.folder.exists()


def test_copies_held_at_once_are_the_model_and_its_largest_control() -> None:
    assert copies(steps_of("01_image_tokens_stabilise", Size(9))) == 3
    assert copies(steps_of("04_truncation_is_task_dependent", Size(9))) == 1
    assert copies([]) == 0


def test_a_growing_process_is_seen_to_grow() -> None:
    with pilot.Peak(torch.device("cpu")) as peak:
        block = np.ones(200_000_000 // 8)
        time.sleep(0.1)
        del block
    assert 150e6 < peak.growth < 400e6


# --- the list of steps against the notebooks ---

NOTHING_MEASURED = {
    *("available_tasks", "chance", "claim_entry", "load_claims", "load_task", "lost", "verdict"),
    *("accuracy_table", "adapted", "chosen", "registered", "cut_depth"),
    *("all_verdicts", "compare", "layer_bands", "open_run", "progress_line", "sensitivity"),
    *("judge", "changed_verdicts"),
    *("side_by_side", "with_token_layers", "measured_ratios", "recommend_depth", "counted_flops"),
    *("predicted_costs", "predicted_sizes", "scores_and_savings", "shape_of", "tower_share"),
    *("BESIDE", "GROUPS", "IN_PLACE", "random_decoder", "environment_facts", "needs_text"),
    *("picture_grid", "sample_table", "token_strip", "control_table"),
    *("after_holm", "early_depth", "early_layer", "layer_of_most_harm", "replications"),
}
"""Names that notebooks import and that cost seconds at most, whatever the model."""
KINDS = {
    "load": "load_vlm",
    "physical sweep": "truncation_sweep",
    "adapted sweep": "recovery_sweep",
}
KINDS |= {"targets": "trainings", "distill": "trainings"}
"""Kinds whose name is not that of the function that a notebook calls."""


def code_of(source: Path) -> ast.Module:
    cells = nbformat.read(source, as_version=4).cells
    code = [c.source for c in cells if c.cell_type == "code" and "google.colab" not in c.source]
    return ast.parse("\n".join(code))


def steps_both(name: str) -> list[Step]:
    return [step for full in (False, True) for step in steps_of(name, Size(96, full))]


def test_every_notebook_has_an_entry() -> None:
    assert [source.stem for source in SOURCES] == list(NOTEBOOKS)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_what_a_notebook_imports_to_measure_is_what_its_steps_name(source: Path) -> None:
    imported = set()
    for node in ast.walk(code_of(source)):
        module = getattr(node, "module", None) or ""
        if module.startswith("visdepth_utils") and ".plots" not in module:
            imported |= {alias.name for alias in node.names}
    named = {KINDS.get(step.kind, step.kind) for step in steps_both(source.stem)}
    assert imported - NOTHING_MEASURED == named


def kept_names(tree: ast.Module) -> set[str]:
    """Names given to run.table, run.by_block and control_table, with * for what is put in."""
    out = set()
    named_by = {"run.table": 0, "run.by_block": 0, "control_table": 1}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in named_by:
            name = node.args[named_by[ast.unparse(node.func)]]
            parts = getattr(name, "values", [name])
            out.add(
                "".join(
                    getattr(part, "value", "*") if isinstance(part, ast.Constant) else "*"
                    for part in parts
                )
            )
    return out


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_table_that_a_notebook_keeps_is_a_step_and_the_other_way(source: Path) -> None:
    patterns = kept_names(code_of(source))
    names = {step.table for step in steps_both(source.stem) if step.table}
    # Either side may hold the star: both stand for the same calls.
    unmatched = {n for n in names if not any(fnmatch.fnmatch(n, p) for p in patterns)}
    assert unmatched == set()
    assert {p for p in patterns if not any(fnmatch.fnmatch(n, p) for n in names)} == set()


def test_the_comparison_would_notice_a_step_that_is_added() -> None:
    tree = ast.parse('run.table("c4_more", f)\nrun.by_block(f"c4_{what}_{name}", s, f)')
    assert kept_names(tree) == {"c4_more", "c4_*_*"}
    names = {step.table for step in steps_both("04_truncation_is_task_dependent")}
    assert not any(fnmatch.fnmatch(name, "c4_more") for name in names)


def test_numbers_that_stand_only_in_notebooks_stand_there() -> None:
    code = {source.stem[:2]: ast.unparse(code_of(source)) for source in SOURCES}
    assert f"min(n_samples, {DECODED['C6']})" in code["06"]
    assert f"min(n_samples, {DECODED['C7']})" in code["07"]
    assert all("(0, 1, 2)" in code[number] for number in ("06", "07"))
    assert f"counts, other = ({REFERENCE_COUNTS}, entry['other_tokens'])" in code["08"]
    assert f"'depths': {REFERENCE_DEPTHS}, 'repeats': {REFERENCE_REPEATS}," in code["08"]
    assert f"'new_tokens': 8 if full else {pilot.NEW_TOKENS}" in code["08"]
    assert f"task.samples[:{BESIDE_SAMPLES}]" in code["08"]
    assert f"samples[:{PHYSICAL_SAMPLES}]" in code["04"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_default_samples_are_those_of_the_parameters_cell_and_of_the_claim(source: Path) -> None:
    n = default_parameters(source).get("n_samples")
    assert (n is None) == (source.stem == "10_verdicts")
    assert (f"default_n={n}," in source.read_text()) == (n is not None)
    for claim in load_claims()["claims"].values():
        if claim["notebook"] == source.stem and "n_images" in claim:
            assert n == claim["n_images"]


def test_every_kind_can_be_measured_and_has_a_block() -> None:
    kinds = {step.kind for name in NOTEBOOKS for step in steps_both(name)} - {"load"}
    assert kinds == set(BLOCKS)
    assert kinds == set(pilot.CALLS) | {"time_by_depth", "distill"}
    assert set(pilot.SIZES) == set(pilot.CALLS)


def test_training_is_counted_only_where_no_adapter_is_at_hand(tmp_path) -> None:
    def trained(have: frozenset[str]) -> dict[str, float]:
        steps = steps_of("06_distillation_recovers", Size(96, adapters=have))
        return {
            k: sum(s.times * s.units for s in steps if s.kind == k) for k in ("distill", "targets")
        }

    shipped = frozenset(folder.name for folder in (SHIPPED / "base").iterdir())
    assert trained(shipped) == {"distill": 0, "targets": 0}
    rule = load_claims()["claims"]["C6"]["distill"]
    pictures, steps = rule["samples"] + rule["validation"], rule["steps"][0]
    each = 2 * len(rule["rates"]) + 1  # every rate, also shuffled; the whole model once
    assert trained(frozenset()) == {"distill": 2 * each * steps, "targets": 2 * pictures}
    assert trained(shipped - {"caption-d12"}) == {"distill": steps, "targets": pictures}
    run = run_of("data/minivlm/base", tmp_path)
    assert plan._adapters(run) == shipped
    assert plan._adapters(run_of("data/minivlm/base", tmp_path, seed=1)) == frozenset()
    done = tmp_path / "adapters" / "mcq-d4-shuffled-0123abcd" / "adapter_model.safetensors"
    done.parent.mkdir(parents=True)
    done.touch()
    assert plan._adapters(run) == shipped | {"mcq-d4-shuffled"}


# --- the pilot ---


@pytest.fixture(autouse=True)
def no_imports(monkeypatch) -> None:
    """The process that a pilot starts imports nothing, and so takes no seconds."""
    monkeypatch.setattr(pilot, "START", "print(5)")


def test_the_pilot_finds_the_costs_of_a_clock_that_is_ours(llava: VLM, monkeypatch) -> None:
    now, calls = [0.0], []

    def evaluated(bench, task, options):
        calls.append(len(task))
        now[0] += 0.25 + 0.05 * len(task) + (0.5 if len(calls) == 1 else 0)
        return pd.DataFrame({"value": np.zeros(len(task))})

    def refused(bench, task, options):
        raise ValueError("not this family\nreally")

    monkeypatch.setitem(pilot.CALLS, "evaluate", evaluated)
    monkeypatch.setitem(pilot.CALLS, "token_kl", refused)
    asked = [("evaluate", "vqa", PICTURE)] * 2 + [("token_kl", "vqa", ()), ("load", "trained", ())]
    table = pilot.pilot(llava, asked, n=24, load_s=7.0, clock=lambda: now[0])
    found = table[table["kind"] == "evaluate"]
    assert calls == [2, 2, 8]  # the first of its kind does not count
    assert found["call_s"].tolist() == pytest.approx([0.25])
    assert found["unit_s"].tolist() == pytest.approx([0.05])
    loads = table[table["kind"] == "load"].set_index("task")
    assert loads["unit_s"].tolist() == pytest.approx([7, 7, 7])  # this clock stands still
    weights = 4 * sum(p.numel() for p in llava.model.parameters())
    assert set(loads["unit_bytes"]) == {weights}
    assert table.loc[table["kind"] == "token_kl", "note"].tolist() == [
        "ValueError: not this family"
    ]
    assert table["note"].notna().all()


def test_a_slow_model_is_measured_once_and_never_on_more_samples_than_the_run_has(
    llava: VLM, monkeypatch
) -> None:
    now, calls = [0.0], []

    def slow(bench, task, options):
        calls.append(len(task))
        now[0] += 30.0 * len(task)

    monkeypatch.setitem(pilot.CALLS, "evaluate", slow)
    table = pilot.pilot(llava, [("evaluate", "vqa", PICTURE)], n=24, clock=lambda: now[0])
    assert calls == [2]
    assert table.iloc[-1][["call_s", "unit_s"]].tolist() == [0, 30]
    calls.clear()
    pilot.pilot(llava, [("evaluate", "vqa", PICTURE)], n=1, clock=lambda: now[0])
    assert calls == [1]


def test_every_kind_runs_on_a_tiny_model(llava64: VLM, monkeypatch) -> None:
    """As the notebooks call it: a changed signature is seen here and not in a dry run."""
    monkeypatch.setattr(pilot, "START", START)  # for once the real one
    monkeypatch.setattr(pilot, "SIZES", {**dict.fromkeys(pilot.SIZES, (2, 2)), "targets": (1, 2)})
    monkeypatch.setattr(pilot, "SHORT_S", 0.0)
    # The clocks of notebook 08 run a decoder of a real size; they have tests of their own.
    kinds, chosen = {*BLOCKS} - {"time_by_depth"}, {}
    for name in NOTEBOOKS:
        for step in steps_of(name, Size(24, n_layers=4)):
            kind = step.kind, step.options
            if step.kind in kinds and (kind not in chosen or step.task in ("vqa", "chart")):
                chosen[kind] = step.probe
    table = pilot.pilot(llava64, chosen.values(), n=24)
    assert table["note"].tolist() == [""] * len(table)
    assert set(table["kind"]) == {"start", "load", *kinds}
    measured = table[table["kind"] != "load"]
    assert (measured["call_s"] + measured["unit_s"] > 0).all()
    assert table.loc[table["kind"] == "start", "unit_bytes"].item() > 1e8


# --- the command ---


@pytest.fixture
def made_up(monkeypatch) -> list[int]:
    """No pilot is measured: a sample of anything costs a second, 1 MB of memory, 1 KB of disk."""
    made: list[int] = []

    def fake(vlm, asked, **options):
        made.append(options["n"])
        steps = [Step("", *probe[:2], options=probe[2]) for probe in asked]
        return pilot_of(steps, unit_s=1.0, unit_bytes=1e6, unit_disk=1e3)

    monkeypatch.setattr(pilot, "pilot", fake)
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
    assert [line.split()[0] for line in lines if line[:2].isdigit()] == list(NOTEBOOKS)
    chains = next(line for line in lines if line.startswith("05_"))
    # 2.3 times the start of 4 s, one load and 96 samples of a second.
    assert "1 min 46 s" in chains
    assert "it fits:" in lines[-1]
    assert not (tmp_path / "run" / "notebooks").exists()
    assert not (tmp_path / "run" / "claims.json").exists()
    assert dry(llava_path, tmp_path / "run", n_samples=2)[0] == 0
    assert dry(llava_path, tmp_path / "run")[0] == 0
    assert made_up == [16, 2]  # kept like any step
    # Notebook 00 shows the same, though its run has 24 samples where the command has none.
    shown = plan.needs_text(
        replace(run_of(llava_path, tmp_path / "run", n_samples=24), default_n=24)
    )
    assert chains in shown
    text = dry(llava_path, tmp_path / "run", n_samples=2)[1]
    assert "it fits:" in text
    kept = sorted((tmp_path / "run").rglob("*"))
    monkeypatch.setattr(plan, "refuse_early", lambda run, sources: None)
    monkeypatch.setattr(plan, "free_memory", lambda device: 2e6)  # known after the pilot
    status, text = dry(llava_path, tmp_path / "run")
    assert status == 1
    assert "does not fit: " in text.splitlines()[-1]
    assert "GB are free" in text.splitlines()[-1]
    assert sorted((tmp_path / "run").rglob("*")) == kept  # what was there before


def test_a_refused_dry_run_leaves_no_folder(
    llava_path: Path, tmp_path: Path, made_up: list[int], monkeypatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(plan, "free_memory", lambda device: 2e6)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "refuse_early", lambda run, sources: None)  # known after the pilot
        status, text = dry(llava_path, tmp_path / "there" / "new" / "run")
    assert (status, made_up) == (1, [16]) and "does not fit: " in text
    # Known before the pilot.
    assert dry(llava_path, tmp_path / "there" / "new" / "run")[0] == 1
    assert made_up == [16]
    monkeypatch.undo()

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such family")

    monkeypatch.setattr("visdepth_utils.load_vlm", broken, raising=False)
    with pytest.raises(ValueError, match="^no such family$"):  # it is not said not to fit
        dry(llava_path, tmp_path / "there" / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []


def test_without_a_pilot_notebook_00_says_what_is_needed_at_least(tmp_path: Path) -> None:
    text = plan.needs_text(run_of("data/minivlm/base", tmp_path))
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
    monkeypatch.setattr(plan, "free_disk", lambda folder: 5e5)
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
