"""The command that records what notebooks cost: a line through two runs, in answers and starts."""

import json

import pandas as pd
import pytest

from tests.notebooks.test_reproduce import MEASURE, OPEN, write
from tools import costs
from tools.__main__ import main
from visdepth_utils.runs import estimate

PILOT = {"start_s": 4.0, "start_bytes": 4e8, "load_s": 1.0, "weights": 1e8, "layers": 12}
PILOT |= {"answer_bytes": 1e9, "answer caption": 2.0, "answer vqa": 0.5}


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Two notebooks that cost 20 s and 1 MB, one of them 5 s and 2 KB more for each sample."""
    monkeypatch.setattr(estimate, "COSTS", tmp_path / "costs.json")
    monkeypatch.setattr(costs, "WORK", tmp_path / "work")
    tables = tmp_path / "work" / "base-quick-n8" / "tables"
    tables.mkdir(parents=True)
    for name in ("c1_geometry-0123456789ab", "preflight-0123456789ab"):
        (tables / f"{name}.parquet").touch()

    def run_all(model, profile, n, only):
        n = n or 48
        busy = 1.5 if n == 8 else 1.0  # other work shares the machine while some are run
        pilot = {w: busy * s for w, s in PILOT.items() if w.endswith("_s") or " " in w}
        one = {"n": n, "seconds": busy * (20 + 5.0 * n), "memory": 1.5e9, "disk": 1e6 + 2e3 * n}
        last = {"n": 0, "seconds": busy * 20.0, "memory": 0.5e9, "disk": 1e6, "tasks": []}
        one, last = (run | {"pilot": pilot} for run in (one, last))
        rows = {"01_image_tokens_stabilise": one | {"tasks": ["caption", "vqa"]}, "10_v": last}
        return PILOT, pd.DataFrame({k: v for k, v in rows.items() if k.startswith(only)}).T

    monkeypatch.setattr(costs, "run_all", run_all)


def test_a_record_is_a_line_through_two_runs(runs, capsys):
    assert main(["costs", "data/minivlm/base"]) == 0
    assert capsys.readouterr().out.strip() == str(estimate.COSTS)
    kept = json.loads(estimate.COSTS.read_text())
    assert (kept["model"], kept["layers"], kept["steps"]) == ("minivlm/base", 12, ["c1_geometry"])
    first, last = kept["quick"].values()
    assert first == {
        "tasks": ["caption", "vqa"],
        "starts": 4.25,  # 20 s without three loads of 1 s, of 4 s
        "answers": 2.0,  # 5 s of 2 and 0.5 s
        "grows": 0,
        "copies": 3,
        "memory": 3e8,  # beside a model that answers and two copies of the weights
        "disk": 1e6,
        "disk_each": 2000,
    }
    assert (last["starts"], last["answers"], last["memory"]) == (4.75, 0, 1e8)


def test_what_is_recorded_gives_the_run_back_and_the_rest_stays(runs, capsys):
    costs.record("data/minivlm/base")
    assert main(["costs", "data/minivlm/base", "--compare", "--n", "24"]) == 0
    table = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:]}
    assert rows["01_image_tokens_stabilise"][:2] == ["140.0", "140.0"]
    before = json.loads(estimate.COSTS.read_text())
    costs.record("data/minivlm/base", "full", ("01",))
    after = json.loads(estimate.COSTS.read_text())
    assert after["quick"] == before["quick"]
    assert list(after["full"]) == ["01_image_tokens_stabilise"]


def test_notebooks_are_run_once_and_watched(llava_path, tmp_path, monkeypatch):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    more = "from visdepth_utils import load_task\nrun.keep(load_task('vqa', n_samples))"
    write(notebooks / "01_a.ipynb", OPEN, MEASURE, more)
    monkeypatch.setattr(costs, "WORK", tmp_path / "work")
    monkeypatch.setattr(costs, "ordered_notebooks", lambda folder: sorted(notebooks.glob("*")))
    monkeypatch.setattr(
        estimate, "pilot", lambda *a, **k: pd.DataFrame(PILOT.items(), columns=["what", "value"])
    )
    monkeypatch.setattr(costs.torch, "get_num_threads", lambda: 1)
    pilot, table = costs.run_all(str(llava_path), "quick", 3, ("01",))
    (row,) = table.to_dict("records")
    assert pilot == PILOT
    assert (row["n"], row["tasks"]) == (3, ["vqa"])
    assert row["pilot"] == {
        w: PILOT[w] for w in ("answer caption", "answer vqa", "start_s", "load_s")
    }
    assert 1 < row["seconds"] < 600
    assert row["memory"] > 1e8
    assert row["disk"] > 1e4
    again = costs.run_all(str(llava_path), "quick", 3, ("01",))[1]
    pd.testing.assert_frame_equal(again, table)  # read back
    monkeypatch.setattr(costs.torch, "get_num_threads", lambda: 2)
    with pytest.raises(RuntimeError, match="OMP_NUM_THREADS=1"):
        costs.run_all(str(llava_path), "quick", 3, ("01",))
