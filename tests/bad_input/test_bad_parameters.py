"""Wrong and hostile parameters through papermill, make and a real command line."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from tests.bad_input.box import PARAMETERS, Box
from visdepth_utils import settings as settings_module
from visdepth_utils.models.checkpoints import REPO
from visdepth_utils.running import headless
from visdepth_utils.running.streams import Indented
from visdepth_utils.settings import check_injected

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
    headless.use_own_kernel()
    show = "import json\nprint(json.dumps([model, source, device, dtype, profile]))"
    notebook = box.notebook("00_a.ipynb", PARAMETERS, show)
    target, log = box.folder / folder / "out.ipynb", io.StringIO()
    cwd = box.folder / "cwd"
    cwd.mkdir()
    outcome = headless.execute(notebook, target, HOSTILE, cwd, Indented(log))
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
    monkeypatch.setattr(settings_module, "get_ipython", lambda: shell)
    check_injected()
    for name in ("REPO", "Model", "seeds"):
        cells[3] = f"# Parameters\nmodel = 3\n{name} = 4\n"
        with pytest.raises(ValueError, match=f"parameter '{name}': this notebook has model, seed"):
            check_injected()
    cells.pop(2)  # no cell of parameters: nothing to compare with
    cells[1] = "import sys"
    check_injected()
    monkeypatch.setattr(settings_module, "get_ipython", lambda: None)
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


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "quote", ["'", "''", "'; touch {} #", "$(touch {})", "$(shell touch {})", "`touch {}`", "$$x"]
)
@pytest.mark.parametrize("target", ["reproduce", "report", "cache"])
def test_a_value_reaches_the_command_as_it_is(tmp_path: Path, quote: str, target: str) -> None:
    """Neither make nor its shell takes a part of MODEL or RUN for something to do."""
    value = quote.format(tmp_path / "trapped")
    variable = "MODEL" if target == "reproduce" else "RUN"
    given = ["-o", ".venv/.installed", f"PY={sys.executable} -c 'import sys; print(sys.argv[1:])'"]
    done = subprocess.run(
        ["make", *given, target, f"{variable}={value}"],
        cwd=REPO,
        env={name: text for name, text in os.environ.items() if not name.startswith("MAKE")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert repr(value) in done.stdout
    assert not (tmp_path / "trapped").exists()
