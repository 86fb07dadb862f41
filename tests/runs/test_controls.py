"""A control without memory: the run goes on, the reason is kept, the claim is not supported."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from calibration.curves import image_table, text_table
from tests import tiny
from visdepth_utils import layer_geometry, load_vlm, verdict
from visdepth_utils.claims.bootstrap import layer_bands
from visdepth_utils.data.samples import Sample
from visdepth_utils.models import placement
from visdepth_utils.plots.geometry import depth_curves
from visdepth_utils.runs.controls import control_table
from visdepth_utils.runs.run import Run, open_run

REASON = "not measured, no memory: CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def run(llava_path: Path, tmp_path: Path) -> Run:
    return open_run(model=str(llava_path), n_samples=2, out_dir=tmp_path / "run")


def failing(error: BaseException):
    def fn() -> pd.DataFrame:
        raise error

    return fn


def skipped(run: Run, like: pd.DataFrame, name: str = "random-init") -> pd.DataFrame:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")
    return control_table(run, "control", failing(error), {}, name=name, like=like)


def test_a_control_too_large_for_this_machine_is_left_out_and_named(
    run: Run, llava_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    samples = [
        Sample(f"s{i}", f"p{i}", (tiny.picture(i),), "what ?", "red", "red", "vqa") for i in (0, 1)
    ]
    vlm = load_vlm(llava_path)
    options = {"n0": 8, "draws": 2, "modalities": ["image"]}
    table = layer_geometry(vlm, samples, **options)

    def fn() -> pd.DataFrame:
        return layer_geometry(load_vlm(llava_path, random_init=True), samples, **options)

    with monkeypatch.context() as patch:
        few = SimpleNamespace(available=9e4)
        patch.setattr(placement.psutil, "virtual_memory", lambda: few)
        found = control_table(run, "control", fn, {}, name="random-init", like=table)
    said = capsys.readouterr().out
    assert "control: random-init not measured, no memory: " in said
    assert "0.0 GB are free" in said and "use a machine" not in said
    assert found["value"].isna().all() and found.shape == table.shape
    assert set(found["note"]) == {said.strip().removeprefix("control: random-init ")}
    # Nothing of it was cached: with memory, it is measured.
    again = control_table(run, "control", fn, {}, name="random-init", like=table)
    assert again["value"].notna().any()


def test_memory_that_runs_out_while_measuring_counts_and_other_errors_are_raised(run: Run) -> None:
    like = pd.DataFrame({"value": [1.0], "note": [""]})
    single = RuntimeError("sample 's0' does not fit into memory with a single row: use bfloat16")
    single.__cause__ = MemoryError()
    found = control_table(run, "control", failing(single), {}, name="x", like=like)
    said = "not measured, no memory: sample 's0' does not fit into memory with a single row"
    assert found["note"].tolist() == [said]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        control_table(run, "c", failing(RuntimeError("shape mismatch")), {}, name="x", like=like)
    with pytest.raises(ValueError, match="no such"):
        control_table(run, "c", failing(ValueError("no such")), {}, name="x", like=like)


@pytest.mark.parametrize("others", [[], ["drift"]])
def test_the_first_claim_lacks_what_it_is_held_against(run: Run, others: list[str]) -> None:
    table = image_table("plateau")
    controls = {name: image_table(name, seed=1000) for name in others}
    full = verdict("C1", table, control=controls | {"random-init": image_table("flat", seed=9)})
    assert full.verdict == "supported"
    v = verdict("C1", table, control=controls | {"random-init": skipped(run, table)})
    assert v.verdict == "inconclusive"
    assert f"(random-init: {REASON})" in v.reason
    rows = v.controls.set_index("control")
    assert rows.loc["random-init", "shows it"] == "not measured"
    assert rows.loc["random-init", "note"] == REASON
    assert v.effect == full.effect and np.isnan(v.control_effect) == (not others)
    # A claim that fails by itself needs no control.
    plain = image_table("drift")
    v = verdict("C1", plain, control={"random-init": skipped(run, plain)})
    assert v.verdict == "not supported"
    assert v.to_dict()["controls"][0]["note"] == REASON


def test_another_control_that_shows_the_pattern_still_weakens_the_claim(run: Run) -> None:
    table = image_table("plateau")
    controls = {"random-init": skipped(run, table), "decoder": image_table("plateau", seed=1000)}
    assert verdict("C1", table, control=controls).verdict == "weaker"


def test_the_second_claim_lacks_it_too(run: Run) -> None:
    table = text_table("text keeps changing")
    other = text_table("both settle", seed=1000, shuffled=False, placed=False)
    assert verdict("C2", table, control={"untrained": other}).verdict == "supported"
    controls = {"untrained": other, "random-init": skipped(run, table)}
    v = verdict("C2", table, control=controls)
    assert v.verdict == "inconclusive"
    assert f"(random-init: {REASON})" in v.reason
    assert v.controls.set_index("control").loc["random-init", "note"] == REASON


def test_a_figure_shows_no_line_and_no_name_of_it(run: Run) -> None:
    table = image_table("plateau")
    bands = layer_bands(table)
    controls = {"gone": layer_bands(skipped(run, table)), "there": bands}
    fig = depth_curves(bands, controls=controls)
    drawn = [text for axis in fig.axes for text in axis.get_legend_handles_labels()[1]]
    assert any("there" in text for text in drawn)
    assert not any("gone" in text for text in drawn)
