"""Runs: the step cache, verdict files, settings, provenance, progress."""

import io
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import visdepth_utils
from tests import tiny
from visdepth_utils.common.files import atomic
from visdepth_utils.common.progress import duration, progress_line
from visdepth_utils.report.sections import flat_rows
from visdepth_utils.runs import cache, identity, measuring_code, provenance
from visdepth_utils.runs import run as runs
from visdepth_utils.runs.records import read_claims, read_provenance
from visdepth_utils.runs.run import Run, open_run
from visdepth_utils.runs.settings import check_settings, run_folder

TABLE = pd.DataFrame(
    {"sample": ["a", "b"], "layer": [0, 1], "value": [0.5, np.nan], "note": ["", None]}
)
VERDICT = {
    "claim": "C1",
    "statement": "s",
    "model": "m",
    "verdict": "weaker",
    "effect": np.float64(0.25),
    "ci": (0.1, float("nan")),
    "n_images": np.int64(64),
    "control_effect": float("inf"),
    "thresholds": {"delta": 0.05},
    "notebook": "01_x",
    "reason": "r",
}


class Counted:
    """A step that counts how often it is computed."""

    def __init__(self, frame: pd.DataFrame = TABLE) -> None:
        self.calls, self.frame = 0, frame

    def __call__(self) -> pd.DataFrame:
        self.calls += 1
        return self.frame


@pytest.fixture
def run(llava_path: Path, tmp_path: Path) -> Run:
    return open_run(model=str(llava_path), n_samples=4, out_dir=tmp_path / "run")


def only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


# --- step cache ---------------------------------------------------------------------------------


def test_a_finished_table_is_not_computed_twice_and_reads_back_the_same(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    fn = Counted()
    first = run.table("layer_geometry", fn, key={"n0": 64, "metrics": ("a", "b")})
    again = run.table("layer_geometry", fn, key={"metrics": ["a", "b"], "n0": 64})
    assert fn.calls == 1
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first, TABLE, check_dtype=False)
    out = capsys.readouterr().out
    assert "layer_geometry: measured (2 rows)" in out
    assert "layer_geometry: from cache (2 rows)" in out


class Made:
    """A run on a model and on data of its own, to be changed in one thing."""

    def __init__(self, folder: Path, model: Path, worlds: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.model = Path(shutil.copytree(model, folder / "model"))
        self.data = Path(shutil.copytree(worlds, folder / "data"))
        given = {"model": str(self.model), "source": str(self.data), "device": "auto"}
        self.run = Run(folder / "run", check_settings(**{**GOOD, **given}))
        self.name, self.key, self.samples = "step", {"n0": 64}, [tiny.sample(i) for i in range(3)]

    def set(self, name: str, value: object) -> None:
        """Another setting."""
        value = str(value) if isinstance(value, Path) else value
        self.run = Run(self.run.folder, {**self.run.settings, name: value})

    def identity(self, **changed: str) -> None:
        """Another entry of the model's identity."""
        known = provenance.model_identity(str(self.model))
        self.patch.setattr(provenance, "model_identity", lambda name: {**known, **changed})

    def measured(self) -> list[int]:
        """Measure as one table and block by block: 1 where it was measured, 0 from the cache."""
        calls: list[int] = []
        for how in range(2):
            fn = Counted(pd.DataFrame({"value": [1.0]}))
            if how:
                blocks = (self.name, self.samples, lambda block, say, fn=fn: fn(), self.key)
                self.run.by_block(*blocks)
            else:
                self.run.table(f"{self.name}_whole", fn, self.key)
            calls.append(fn.calls)
        return calls


# Entry of the key of a stored table -> how one changes it, and nothing else.
CHANGES: dict[str, Callable[[Made], object]] = {
    "code": lambda m: m.patch.setattr(measuring_code, "code_version", lambda: "new"),
    "step": lambda m: setattr(m, "name", "other"),
    "key.data": lambda m: (m.data / "vqa.parquet").write_bytes(b"other"),
    "key.model_files": lambda m: (m.model / "chat_template.jinja").write_text("other"),
    "key.revision": lambda m: m.identity(revision="other"),
    "key.weights": lambda m: (m.model / "model.safetensors").write_bytes(b"other"),
    "key.settings.device": lambda m: m.patch.setattr(runs, "resolved_device", lambda name: "cuda"),
    "key.settings.dtype": lambda m: m.set("dtype", "bfloat16"),
    "key.settings.model": lambda m: m.set("model", shutil.copytree(m.model, m.folder / "copy")),
    "key.settings.n_samples": lambda m: m.set("n_samples", 7),
    "key.settings.profile": lambda m: m.set("profile", "full"),
    "key.settings.seed": lambda m: m.set("seed", 7),
    "key.settings.source": lambda m: m.set("source", shutil.copytree(m.data, m.folder / "copied")),
    "key.step.content": lambda m: setattr(
        m, "samples", [replace(s, answer="other") for s in m.samples]
    ),
    "key.step.n0": lambda m: m.key.update(n0=32),
    "key.step.samples": lambda m: m.samples.pop(),
}
OF_BLOCKS = {"key.step.content", "key.step.samples"}
SHARED_BY_BLOCKS = {"key.settings.n_samples"}


@pytest.fixture
def made(
    tmp_path_factory: pytest.TempPathFactory,
    llava_path: Path,
    worlds: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Made:
    return Made(tmp_path_factory.mktemp("made"), llava_path, worlds, monkeypatch)


@pytest.mark.parametrize("entry", CHANGES)
def test_whatever_a_table_depends_on_makes_a_new_table(entry: str, made: Made) -> None:
    assert made.measured() == [1, 1]
    assert made.measured() == [0, 0]
    CHANGES[entry](made)
    assert made.measured() == [entry not in OF_BLOCKS, entry not in SHARED_BY_BLOCKS]


def test_every_entry_of_the_key_has_such_a_test(made: Made) -> None:
    made.measured()
    for file in (made.run.folder / "tables").glob("*.parquet"):
        found = {name.replace(" / ", ".") for name, _ in flat_rows(cache.stored_key(file))}
        assert found == set(CHANGES) - (OF_BLOCKS if "whole" in file.name else set())


class Named:
    """A sample, as far as the cache is concerned."""

    def __init__(self, name: str) -> None:
        self.id = name


def test_a_killed_sweep_repeats_only_the_block_it_was_in(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [Named(f"s{i}") for i in range(5)]
    seen: list[list[str]] = []

    def measure(block: list[Named], progress: object, fatal: str = "") -> pd.DataFrame:
        ids = [sample.id for sample in block]
        seen.append(ids)
        if fatal in ids:
            raise KeyboardInterrupt
        progress(len(block), len(block), "sweep")
        return pd.DataFrame({"sample": ids})

    with pytest.raises(KeyboardInterrupt):
        run.by_block("sweep", samples, lambda b, p: measure(b, p, "s3"), size=2)
    assert seen == [["s0", "s1"], ["s2", "s3"]]
    seen.clear()
    frame = run.by_block("sweep", samples, measure, size=2)
    assert seen == [["s2", "s3"], ["s4"]]
    assert frame["sample"].tolist() == ["s0", "s1", "s2", "s3", "s4"]
    run.by_block("sweep", samples, measure, size=2)
    run.by_block("sweep", samples, measure, key={"mode": "freeze"}, size=2)
    out = capsys.readouterr().out
    assert "sweep: 1 of 3 blocks from cache (5 rows)" in out
    assert "sweep: 3 of 3 blocks from cache (5 rows)" in out
    assert "sweep: measured (5 rows)" in out
    assert "sweep: 5/5" in out


def test_notebooks_with_other_numbers_of_samples_share_their_blocks(run: Run) -> None:
    samples = [Named(f"s{i}") for i in range(6)]
    seen: list[list[str]] = []

    def measure(block: list, _progress: object) -> pd.DataFrame:
        seen.append([sample.id for sample in block])
        return pd.DataFrame({"sample": seen[-1]})

    fewer = Run(run.folder, {**run.settings, "n_samples": 4})
    more = Run(run.folder, {**run.settings, "n_samples": 6})
    fewer.by_block("sweep", samples[:4], measure, size=2)
    frame = more.by_block("sweep", samples, measure, size=2)
    assert seen == [["s0", "s1"], ["s2", "s3"], ["s4", "s5"]]
    assert frame["sample"].tolist() == [sample.id for sample in samples]
    Run(run.folder, {**more.settings, "seed": 1}).by_block("sweep", samples[:2], measure, size=2)
    assert len(seen) == 4  # other settings count


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_table_is_set_aside_and_measured_again(
    run: Run, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame({"value": np.random.default_rng(0).normal(size=2000)})
    fn = Counted(frame)
    run.table("step", fn)
    file = only(run.folder / "tables", "*.parquet")
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 3] ^= 1  # one bit inside the numbers: only a checksum finds it
    elif damage == "empty":
        data = bytearray()
    else:
        run.table("step", Counted(), key={"other": 1})
        (foreign,) = set((run.folder / "tables").glob("*.parquet")) - {file}
        data = bytearray(foreign.read_bytes())
        foreign.unlink()
    file.write_bytes(bytes(data))
    capsys.readouterr()
    pd.testing.assert_frame_equal(run.table("step", fn), frame)
    assert fn.calls == 2
    out = capsys.readouterr().out
    assert "damaged" in out
    assert len(out.splitlines()) == 2
    assert only(run.folder / "tables", "*.damaged").read_bytes() == bytes(data)


def test_a_step_that_raises_leaves_nothing_behind(run: Run) -> None:
    def broken() -> pd.DataFrame:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run.table("step", broken)
    assert not (run.folder / "tables").exists()


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(file) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_the_version_of_the_code_is_that_of_what_it_does(tmp_path: Path) -> None:
    measures, shows = tmp_path / "measure", tmp_path / "plots"
    for folder in (measures, measures / "inner", shows):
        folder.mkdir(parents=True)
    version = lambda: measuring_code.hash_sources(measures)  # noqa: E731
    (measures / "geometry.py").write_text("def f(x):\n    return x + 1\n")
    (shows / "grid.py").write_text("COLOUR = 'red'\n")
    before = version()
    (measures / "geometry.py").write_text("# why\ndef f(x):\n\n    return (x + 1)\n")
    (shows / "grid.py").write_text("COLOUR = 'blue'\n")
    assert version() == before
    (measures / "geometry.py").write_text("def f(x):\n    return x + 2\n")
    changed = version()
    (measures / "sweeps.py").write_text("")
    added = version()
    (measures / "inner" / "__init__.py").write_text("")
    assert len({before, changed, added, version()}) == 4
    assert measuring_code.hash_sources(measures, shows) != version()


def test_the_folders_that_measure_are_there() -> None:
    home = Path(visdepth_utils.__file__).parent
    assert set(measuring_code.MEASURING) == {"data", "measure", "models"}
    assert all((home / name / "__init__.py").exists() for name in measuring_code.MEASURING)


# --- verdicts, figures, provenance ----------------------------------------------------------------


def test_verdicts_are_merged_by_claim_and_model(run: Run) -> None:
    run.record(VERDICT)
    run.record({**VERDICT, "model": "m2"})
    run.record({**VERDICT, "claim": "C0", "notebook": "00_y"})
    run.record({**VERDICT, "verdict": "supported"})
    text = (run.folder / "claims.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    entries = json.loads(text)
    found = [(entry["claim"], entry["model"], entry["verdict"]) for entry in entries]
    assert found == [("C0", "m", "weaker"), ("C1", "m", "supported"), ("C1", "m2", "weaker")]
    assert set(entries[0]) == {*VERDICT, "source", "rules"}
    assert entries[0]["source"] == "embedded worlds"
    assert entries[1]["ci"] == [0.1, None]
    assert entries[1]["n_images"] == 64


def test_a_broken_notebook_withdraws_its_own_verdicts_only(run: Run) -> None:
    model = run.settings["model"]
    run.record({**VERDICT, "model": model})
    run.record({**VERDICT, "model": Path(model).name, "claim": "C2"})
    run.record({**VERDICT, "model": "/".join(Path(model).parts[-2:]), "claim": "C4"})
    run.record({**VERDICT, "model": model, "claim": "C3", "notebook": "03_z"})
    run.record({**VERDICT, "model": "another"})
    run.withdraw("01_x")
    left = {(entry["claim"], entry["model"]) for entry in read_claims(run.folder)}
    assert left == {("C3", model), ("C1", "another")}


def test_verdicts_recorded_at_the_same_time_are_all_kept(run: Run) -> None:
    entries = [{**VERDICT, "claim": f"C{i}"} for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run.record, entries))
    assert [entry["claim"] for entry in read_claims(run.folder)] == [f"C{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({**VERDICT, "verdict": "true"}, "unknown verdict 'true'"),
        ({**VERDICT, "claim": ""}, "verdict without 'claim'"),
    ],
)
def test_bad_verdicts_are_refused(run: Run, entry: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.record(entry)
    assert not (run.folder / "claims.json").exists()


def test_figures_are_saved_twice_and_free_of_dates(run: Run) -> None:
    saved = []
    for _ in range(2):
        fig, axis = plt.subplots()
        axis.plot([0, 1])
        run.figure(fig, "line")
        plt.close(fig)
        saved.append((run.folder / "figures" / "line.svg").read_bytes())
    assert saved[0] == saved[1]
    assert (run.folder / "figures" / "line.png").read_bytes().startswith(b"\x89PNG")


def test_provenance_says_what_was_run_on_what(run: Run, llava_path: Path) -> None:
    facts = read_provenance(run.folder)
    assert facts["settings"]["n_samples"] == 4
    assert len(facts["model"]["weights_hash"]) == 64
    assert {"python", "torch", "transformers", "numpy", "scikit-dimension"} <= set(
        facts["versions"]
    )
    assert facts["machine"]["threads"] >= 1
    assert facts["device"] in ("cpu", "cuda")
    assert facts["template_date"] == "2025-01-01"  # what a chat template takes today for
    assert len(facts["code"]["measuring"]) == 64
    assert os.uname().nodename not in json.dumps(facts["machine"])


def test_the_weights_hash_is_that_of_the_loaded_model(llava_path: Path, llava: object) -> None:
    assert provenance.model_identity(str(llava_path))["weights_hash"] == llava.weights_hash


def test_the_identity_of_data_follows_its_content(worlds: Path) -> None:
    before = provenance.data_identity(str(worlds))
    (worlds / "vqa.parquet").write_bytes(b"other")
    after = provenance.data_identity(str(worlds))
    assert before["source"] == after["source"]
    assert before["hash"] != after["hash"]
    assert provenance.data_identity("owner/name") == {"source": "owner/name", "hash": None}


def test_the_settings_table_holds_no_path_of_this_machine(run: Run, tmp_path: Path) -> None:
    shown = run.settings_table()
    assert shown.loc["n_samples", "value"] == "4"
    assert shown.loc["source", "value"] == "default"
    assert str(tmp_path) not in shown.drop("model").to_string()


# --- settings -------------------------------------------------------------------------------------

GOOD = {
    "model": "data/minivlm/base",
    "source": None,
    "n_samples": 8,
    "seed": 0,
    "device": "cpu",
    "dtype": "auto",
    "profile": "quick",
}


def test_good_settings_pass_and_an_empty_source_is_none() -> None:
    assert check_settings(**{**GOOD, "source": "", "n_samples": None})["source"] is None


def test_a_missing_model_ends_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint folder 'data/nothing'"):
        open_run(model="data/nothing", out_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def named(**chosen: object) -> Path:
    """The folder of a run with these settings."""
    return run_folder(check_settings(**{**GOOD, "n_samples": None, **chosen}))


def test_results_go_to_one_folder_wherever_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VISDEPTH_RESULTS", raising=False)
    here = named()
    monkeypatch.chdir(tmp_path)
    assert named(model="data/minivlm/base/", device="auto") == here
    assert here.parts[-2:] == ("results", "base-quick")
    assert named(model="Qwen/Qwen2.5-VL 3B", profile="full").name == "Qwen2.5-VL-3B-full"
    assert run_folder(GOOD, "results/mine") == here.parent / "mine"
    monkeypatch.setenv("VISDEPTH_RESULTS", str(tmp_path / "elsewhere"))
    assert named() == tmp_path / "elsewhere" / "base-quick"


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ({"n_samples": 32}, "base-quick-n32"),
        ({"n_samples": 32, "seed": 1, "source": "~/data/mine"}, "base-quick-n32-seed1-mine"),
        ({"source": "x/rows v2.jsonl"}, "base-quick-rows-v2"),
        ({"source": "owner/Chart.QA@1.0"}, "base-quick-Chart.QA-1.0"),
        ({"dtype": "bfloat16", "seed": 7}, "base-quick-seed7-bfloat16"),
    ],
)
def test_other_settings_have_another_folder_with_a_readable_name(chosen: dict, name: str) -> None:
    assert named(**chosen).name == name


# --- one run, one set of settings -----------------------------------------------------------------


def as_notebook(model: Path, out: Path | None = None, **changed: object) -> Run:
    """A notebook whose own number of samples is 48 opens its run; a number may be chosen."""
    settings = {"model": str(model), "n_samples": 48, "default_n": 48, "out_dir": out}
    return open_run(**{**settings, **changed})


OTHER: dict[str, tuple[object, str]] = {
    "n_samples": (32, "n_samples default, this one has n_samples 32"),
    "seed": (1, "seed 0, this one has seed 1"),
    "profile": ("full", "profile 'quick', this one has profile 'full'"),
    "dtype": ("bfloat16", "dtype 'float32', this one has dtype 'bfloat16'"),
    "source": ("WORLDS", "source default, this one has source '"),
    "model": ("QWEN", "this one has model "),
}


@pytest.mark.parametrize("name", OTHER)
def test_one_folder_holds_one_set_of_settings(
    name: str,
    llava_path: Path,
    qwen_path: Path,
    worlds: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever opens it: reproduce, papermill, or a notebook whose cell of parameters was edited."""
    tmp_path = tmp_path_factory.mktemp("runs")  # ``worlds`` fills the other
    monkeypatch.setenv("VISDEPTH_RESULTS", str(tmp_path / "results"))
    value, said = OTHER[name]
    value = {"WORLDS": str(worlds), "QWEN": str(qwen_path)}.get(str(value), value)
    first = as_notebook(llava_path, tmp_path / "mine")
    before = (first.folder / "provenance.json").read_bytes()
    with pytest.raises(ValueError, match="give another folder") as caught:
        as_notebook(**{"model": llava_path, "out": tmp_path / "mine", name: value})
    assert f"{tmp_path / 'mine'} holds a run with " in str(caught.value)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert (first.folder / "provenance.json").read_bytes() == before
    usual = as_notebook(llava_path)
    assert usual.folder == tmp_path / "results" / "llava-quick"
    other = as_notebook(**{"model": llava_path, name: value})
    assert other.folder not in (usual.folder, first.folder)
    for run in (usual, other, usual):  # and both go on
        chosen = {key: run.settings[key] for key in ("model", "n_samples", name)}
        assert as_notebook(**chosen).folder == run.folder


def test_a_notebook_at_its_own_number_goes_on_where_that_number_was_chosen_for_all(
    llava_path: Path, tmp_path: Path
) -> None:
    chosen = open_run(model=str(llava_path), n_samples=48, default_n=100, out_dir=tmp_path / "n48")
    as_notebook(llava_path, tmp_path / "n48").record(VERDICT)
    assert read_provenance(chosen.folder)["settings"]["n_samples"] == 48
    with pytest.raises(ValueError, match="n_samples 48, this one has n_samples default"):
        open_run(model=str(llava_path), n_samples=96, default_n=96, out_dir=tmp_path / "n48")
    for own in (48, 100):  # each notebook at its own
        run = open_run(
            model=str(llava_path), n_samples=own, default_n=own, out_dir=tmp_path / "run"
        )
        assert read_provenance(run.folder)["settings"]["n_samples"] is None
        assert run.settings["n_samples"] == own


def test_changed_weights_or_data_do_not_mix_with_what_was_measured(
    llava_path: Path, worlds: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("runs")  # ``worlds`` fills the other
    model = Path(shutil.copytree(llava_path, tmp_path / "model"))
    options = {"source": str(worlds)}
    run = as_notebook(model, tmp_path / "run", **options)
    with pytest.raises(ValueError, match=r"lies in the folder of the data, .*: give another"):
        as_notebook(model, worlds / "deep" / "run", **options)
    moved = Path(shutil.copytree(model, tmp_path / "moved" / tmp_path.name / "model"))
    as_notebook(moved, tmp_path / "run", **options)  # the same in another place
    table = worlds / "vqa.parquet"
    table.rename(worlds / "caption.parquet")
    with pytest.raises(ValueError, match="contents of the data .* make reproduce measures all"):
        as_notebook(model, tmp_path / "run", **options)
    (worlds / "caption.parquet").rename(table)
    as_notebook(model, tmp_path / "run", **options)
    (model / "chat_template.jinja").write_text("other")
    with pytest.raises(ValueError, match="with config or tokenizer files "):
        as_notebook(model, tmp_path / "run", **options)
    (model / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="holds a run with weights "):
        as_notebook(model, tmp_path / "run", **options)
    assert run.folder.is_dir()


def test_auto_is_another_dtype_where_the_device_is_another() -> None:
    settings = {**GOOD, "model": "data/minivlm/base"}
    assert identity.dtype_of(settings, "cpu") == "float32"
    assert identity.dtype_of({**settings, "dtype": "float16"}, "cpu") == "float16"
    config = json.loads((provenance.REPO / "data/minivlm/base/config.json").read_text())
    assert identity.dtype_of(settings, "cuda") == config["dtype"]
    assert identity.dtype_of({**settings, "model": "owner/not-fetched"}, "cuda") == "auto"


# --- progress -------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class OutStream(io.StringIO):
    """Looks like the stdout of a notebook kernel."""


OutStream.__module__ = "ipykernel.iostream"


def feed(stream: io.StringIO, every: float | None = None) -> str:
    progress = progress_line(stream, every)
    for done in (25, 50, 75, 100):
        progress(done, 100, "generate")
    return stream.getvalue()


def test_progress_in_a_log_is_a_few_whole_lines() -> None:
    lines = feed(io.StringIO(), every=0).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("generate: 25/100, ")
    assert "/s, " in lines[0]
    assert lines[0].endswith(" left")
    assert lines[-1].startswith("generate: 100/100 in ")
    assert len(feed(io.StringIO()).splitlines()) == 2  # the first, and always the last


def test_progress_in_a_terminal_is_one_line() -> None:
    text = feed(Terminal(), every=0)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    states = text.rstrip("\n").split("\r")[1:]
    assert len(states) == 4
    assert len(states[-1]) >= len(states[-2].rstrip())  # covers what was longer


def test_progress_in_a_notebook_ends_without_times() -> None:
    text = feed(OutStream(), every=0)
    assert text.split("\r")[-1].rstrip() == "generate: 100/100 done"


def test_progress_starts_again_with_a_new_label() -> None:
    stream = io.StringIO()
    progress = progress_line(stream)
    for label in ("norms", "geometry"):
        progress(1, 2, label)
        progress(2, 2, label)
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == [
        "norms",
        "norms",
        "geometry",
        "geometry",
    ]


def test_progress_writes_nothing_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress_line()(1, 1, "x")
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("x: 1/1 in ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_duration_is_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
