"""Wrong and hostile parameters through papermill and a real command line."""

import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from tests.bad_input.box import PARAMETERS, Box
from tests.bad_input.commands import MODELS, SETTINGS
from visdepth_utils import __main__ as command
from visdepth_utils.common.files import REPO
from visdepth_utils.data.tasks import load_task
from visdepth_utils.notebooks import execute
from visdepth_utils.notebooks.streams import Indented, Tagged
from visdepth_utils.runs.settings import check_injected

HOSTILE = {
    "model": "a'b\"c\\n{{x}} {model} $(touch pwned) `touch pwned`",
    "source": "!!python/object/apply:os.system ['touch pwned']",
    "device": "auto\nimport os\nos.mkdir('pwned')\n#",
    "dtype": '""" + open("pwned", "w").name + """',
    "profile": "\\'; open('pwned', 'w'); '\u2028\x00",
}


@pytest.fixture
def box(tmp_path: Path, llava_path: Path) -> Box:
    return Box(tmp_path / "box", llava_path)


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "DEBUG"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPO,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("folder", ["a{model}b", "a{{x}}b", "a{zz} 'b\" $c"])
def test_parameters_and_folders_stay_text(box: Box, folder: str) -> None:
    """papermill writes parameters as code and fills {fields} of a path in."""
    execute.use_own_kernel()
    show = "import json\nprint(json.dumps([model, source, device, dtype, profile]))"
    notebook = box.notebook("00_a.ipynb", PARAMETERS, show)
    target, log = box.folder / folder / "out.ipynb", io.StringIO()
    cwd = box.folder / "cwd"
    cwd.mkdir()
    outcome = execute.execute(notebook, target, HOSTILE, cwd, Indented(log))
    assert outcome.error is None, outcome.details
    assert json.loads(log.getvalue()) == list(HOSTILE.values())
    assert list(cwd.iterdir()) == []
    assert nbformat.read(target, as_version=4).cells[1].metadata["tags"] == ["injected-parameters"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["-p", "n_sample", "5"],
            "ValueError: unknown parameter 'n_sample': this notebook has model, source, n_samples, "
            "seed, device, dtype, profile, out_dir",
        ),
        (["-p", "n_samples", "many"], "ValueError: n_samples 'many': give a whole number"),
    ],
)
def test_a_wrong_parameter_ends_papermill(
    box: Box, tmp_path: Path, options: list[str], message: str
) -> None:
    before = box.finished()
    notebook = str(REPO / "notebooks" / "00_start_here.ipynb")
    given = ["-p", "model", str(box.model), "-p", "out_dir", str(box.done), *options]
    done = _command("papermill", "-k", "python3", notebook, str(tmp_path / "x.ipynb"), *given)
    assert done.returncode != 0
    assert message in done.stderr.strip().splitlines()[-1]
    assert box.finished() == before


def test_a_tag_of_python_in_yaml_is_not_followed(box: Box, tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    notebook = str(box.notebooks / "00_a.ipynb")
    text = f"model: !!python/object/apply:os.mkdir ['{trap}']"
    done = _command("papermill", notebook, str(tmp_path / "x.ipynb"), "-y", text)
    assert done.returncode != 0
    assert "could not determine a constructor for the tag" in done.stderr
    assert "python/object/apply:os.mkdir" in done.stderr
    assert not trap.exists()


def test_parameters_are_those_of_the_cell_above(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = ["", "import sys\nREPO = 1", "model = 1\nseed = 2", "# Parameters\nmodel = 3\n", "run"]
    shell = SimpleNamespace(user_ns={"In": cells})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    check_injected()
    for name in ("REPO", "Model", "seeds"):
        cells[3] = f"# Parameters\nmodel = 3\n{name} = 4\n"
        with pytest.raises(ValueError, match=f"parameter '{name}': this notebook has model, seed"):
            check_injected()
    cells.pop(2)  # no cell of parameters: nothing to compare with
    cells[1] = "import sys"
    check_injected()
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    check_injected()


def test_a_real_command_ends_with_2_and_one_line(box: Box) -> None:
    before = box.finished()
    given = ("visdepth_utils", "reproduce", "--model", "data/no", "--out", str(box.done))
    done = _command(*given)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no checkpoint folder 'data/no'")
    assert len(done.stderr.splitlines()) == 1
    shown = _command(*given, DEBUG="1")
    assert shown.returncode == 1 and "Traceback" in shown.stderr
    assert box.finished() == before


SEVERAL = """
import json, os, sys
from visdepth_utils.__main__ import main
before = dict(os.environ)
for line in json.loads(sys.stdin.read()):
    main(line)
    os.environ.clear()
    os.environ.update(before)
    print(json.dumps("torch" in sys.modules))
"""
NEEDS_TORCH = ("no CUDA", "no MPS", "source no parquet")
"""What a device can do, and what is in a file, is not known sooner."""


def test_a_bad_setting_is_refused_before_torch_is_imported(box: Box) -> None:
    cases = [case for case in SETTINGS if case.name not in NEEDS_TORCH]
    cases += MODELS[:-3]  # these need a copy of the checkpoint each
    lines = [[str(part) for part in case.bad(box)] for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        input=json.dumps(lines),
        cwd=REPO,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.split() == ["false"] * len(cases), done.stderr
    for case, said in zip(cases, done.stderr.splitlines(), strict=True):
        assert case.names.replace("{box}", str(box.folder)) in said


def test_help_version_and_where_it_looked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert command.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: ")
    with pytest.raises(SystemExit, match="^0$"):
        command.main(["--version"])
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert capsys.readouterr().out == f"visdepth {project['version']}\n"
    for option in ("--model", "--source"):
        for folder, looked in ((REPO, f"{REPO}"), (tmp_path, f"{tmp_path} and {REPO}")):
            monkeypatch.chdir(folder)
            assert command.main(["reproduce", option, "data/no"]) == 2
            assert f"(looked in {looked}): give" in capsys.readouterr().err


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_name_beyond_ascii_is_kept_where_the_locale_knows_only_ascii(box: Box) -> None:
    (box.notebooks / "00_a.ipynb").unlink()
    box.notebook("00_a.ipynb", PARAMETERS, "print(out_dir)")
    given = [str(part) for part in box.reproduce(out="\u00e4")]
    done = _command("visdepth_utils", *given, **ASCII)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"    {box.folder}/\u00e4\n" in done.stdout
    assert (box.folder / "\u00e4" / "report.html").is_file()


def test_an_argument_that_is_no_text_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", os.fsdecode(b"a\xff")]) == 2
    assert "argument 'a\\udcff' is not in the encoding of the locale" in capsys.readouterr().err


OSC = "\x1b]0;title\x07\x9b2J"


def test_a_name_out_of_a_file_does_not_steer_the_terminal(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = box.file("rows.jsonl", json.dumps({f"im{OSC}": "a.png"}) + "\n")
    monkeypatch.setattr(command, "_dispatch", lambda argv: len(load_task("vqa", source=rows)))
    assert command.main([]) == 2
    said = capsys.readouterr().err
    assert "im\\x1b]0;title\\x07\\x9b2J" in said
    for shown in (Indented, Tagged):
        stream = io.StringIO()
        written = shown(stream, "")
        written.write(f"\x1b[31mred\x1b[0m {OSC}\n")
        written.end()
        assert stream.getvalue() == "red \\x1b]0;title\\x07\\x9b2J\n"
    assert execute._one_line("E", OSC) == "E: \\x1b]0;title\\x07\\x9b2J"
