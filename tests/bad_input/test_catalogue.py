"""Every bad input of the catalogue: exit 2, one line with the input and the mend, nothing lost.

The cases are tables, in ``commands``, ``models``, ``records`` and ``calls``. Bad rows of data are
in ``data/test_bad_rows.py``, damaged tables of the cache in ``test_fuzz_files.py``, parameters
through papermill and make in ``test_bad_parameters.py``.
"""

from pathlib import Path

import pytest

from tests.bad_input import calls, commands, models, records
from tests.bad_input.box import Box, Case
from tests.data.test_bad_rows import CHARTS, LINES, RAW
from tools import __main__ as chores
from visdepth_utils import __main__ as command

PARTS = {
    "model": commands.MODELS,
    "config": models.CONFIGS,
    "reader": models.READERS,
    "weights": models.TENSORS,
    "setting": commands.SETTINGS,
    "notebook": commands.NOTEBOOKS,
    "command": commands.COMMANDS,
    "environment": commands.ENVIRONMENT,
    "claims": records.CLAIMS,
    "provenance": records.PROVENANCE,
    "beside": records.BESIDE,
    "task": calls.TASKS,
    "load": calls.MODELS,
    "sweep": calls.SWEEPS,
    "parameter": calls.PARAMETERS,
    "cache": calls.CACHES,
    "adapter": calls.ADAPTERS,
}
CASES = {f"{part}: {case.name}": case for part, cases in PARTS.items() for case in cases}


@pytest.fixture
def box(tmp_path: Path, llava_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("DEBUG", raising=False)
    for name in ("VISDEPTH_ENGINE", "VISDEPTH_RAY"):
        monkeypatch.setenv(name, "x")  # noted, so that what a command sets is undone afterwards
        monkeypatch.delenv(name)
    return Box(tmp_path / "box", llava_path)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_line_and_nothing_is_lost(
    name: str, box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    for variable, value in case.env:
        monkeypatch.setenv(variable, value.replace("{box}", str(box.folder)))
    arguments: list[str] = []
    if name.split(":")[0] in ("task", "load", "sweep", "parameter", "cache", "adapter"):
        # A call is made where a command makes it, so that what main does with errors counts.
        monkeypatch.setattr(command, "_dispatch", lambda argv: case.bad(box) and 0)
    else:
        arguments = [str(part) for part in case.bad(box)]
    before = box.finished()
    capsys.readouterr()
    status = called(arguments)
    said = capsys.readouterr()
    assert status == 2
    assert said.err.startswith("error: "), said.err
    assert len(said.err.splitlines()) == 1 and len(said.err) < 1200, said.err
    for part in (case.names, case.mend):
        assert part.replace("{box}", str(box.folder)) in said.err
    assert "Traceback" not in said.out
    assert box.finished() == before


def called(arguments: list[str]) -> int:
    """The command, of the package or of the repository's chores, that has this name."""
    chore = arguments[:1] in (["readme"], ["address"], ["eval-minivlm"], ["register"], ["power"])
    return chores.main(arguments) if chore else command.main(arguments)


@pytest.mark.parametrize("name", ["model: missing", "claims: half", "weights: half"])
def test_with_debug_the_traceback_is_shown(
    name: str, box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBUG", "1")
    arguments = [str(part) for part in CASES[name].bad(box)]
    with pytest.raises((ValueError, FileNotFoundError)):
        called(arguments)


def test_the_good_inputs_are_good(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    """What the cases spoil works as it is: no case fails for another reason than its own."""
    for arguments in (
        ["verdicts", box.done],
        ["compare", box.done, box.run()],
        ["report", box.run()],
    ):
        assert command.main([str(part) for part in arguments]) == 0
    calls.load_vlm(box.spoilt({}))
    assert calls._cut(box, depths=[0, 3])["depth"].tolist() == [0, 3] * 2
    box.folder.joinpath("new").mkdir()
    calls._open(box, out_dir=box.folder / "new")
    assert capsys.readouterr().err == ""


def test_the_catalogue_is_large_and_names_input_and_mend() -> None:
    assert len(CASES) == sum(map(len, PARTS.values())) >= 60
    assert len(CASES) + len(CHARTS) + len(LINES) + len(RAW) >= 100
    for case in CASES.values():
        assert isinstance(case, Case)
        assert len(case.names) >= 3 and len(case.mend) >= 6, case.name
