"""The Colab cell's installer: what it asks pip for, and what it never touches."""

import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

from visdepth_utils.common.files import REPO
from visdepth_utils.notebooks import colab
from visdepth_utils.notebooks.colab import Plan, plan


def test_what_fits_stays_and_what_is_missing_is_asked_for() -> None:
    wanted = ["torch>=2.9", "numpy>=2.0", "pandas>=2.2", "scikit-dimension>=0.5,<0.6", "peft>=0.17"]
    there = {"torch": "2.9.1+cu126", "torchvision": "0.24.1+cu126", "numpy": "2.0.2"}
    found = plan(wanted, there | {"pandas": "2.2.2", "peft": "0.16.0"})
    assert found.install == ["scikit-dimension>=0.5,<0.6", "peft>=0.17"]
    assert found.keep == ["torch==2.9.1+cu126", "torchvision==0.24.1+cu126", "numpy==2.0.2"]
    assert found.old == []


def test_an_older_torch_and_the_running_kernel_stay_too_and_are_named() -> None:
    found = plan(["torch>=2.9", "ipykernel>=6.29"], {"torch": "2.5.0+cu121", "ipykernel": "6.17.1"})
    assert found.install == []
    assert found.keep == ["torch==2.5.0+cu121", "ipykernel==6.17.1"]
    told = "torch 2.5.0+cu121 stays, made for >=2.9; ipykernel 6.17.1 stays, made for >=6.29"
    assert "; ".join(found.old) == told


def test_names_are_compared_in_canonical_form_and_previews_count() -> None:
    assert plan(["Rouge_Score>=0.1"], {"rouge-score": "0.1.2"}).install == []
    assert plan(["transformers>=5.0,<6"], {"transformers": "5.1.0.dev0"}).install == []
    assert plan(["torch>=2.9"], {}) == Plan([], ["torch>=2.9"], [])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = '[project]\nname = "x"\ndependencies = ["torch>=2", "nowhere>=1"]\n'
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(colab, "installed_versions", lambda: {"torch": "2.9.1+cu126"})
    return tmp_path


def test_pip_is_called_for_the_missing_and_then_for_the_package_alone(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    calls = []

    def pip(*arguments: str) -> None:
        calls.append((Path(arguments[1]).read_text(), arguments[2:]))

    monkeypatch.setattr(colab, "_pip", pip)
    colab.install(checkout)
    kept = "torch==2.9.1+cu126\n"
    assert calls == [(kept, ("nowhere>=1",)), (kept, ("--no-deps", "-e", str(checkout)))]
    said = "visdepth is installed; as they were: torch==2.9.1+cu126\n"
    assert capsys.readouterr().out == said


def test_a_pip_that_changed_torch_all_the_same_is_an_error(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(*arguments: str) -> None:
        monkeypatch.setattr(colab, "installed_versions", lambda: {"torch": "2.10.0"})

    monkeypatch.setattr(colab, "_pip", pip)
    with pytest.raises(SystemExit, match=r"pip changed torch==2\.9\.1\+cu126: restart"):
        colab.install(checkout)


def test_a_pip_that_fails_is_one_line(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (checkout / "pip.py").write_text("raise SystemExit('no such package')")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    with pytest.raises(SystemExit, match="pip could not install what is missing"):
        colab.install(checkout)
    assert "no such package" in capfd.readouterr().err


def test_the_versions_are_those_that_python_imports() -> None:
    import numpy

    assert colab.installed_versions()["numpy"] == numpy.__version__


# --- the cell ---


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "{} is not installed, see above: name another in VISDEPTH_REPO"),  # no clone
        ("raise SystemExit('error: pip could not')", "{} is not installed, see above"),
        ("", ""),
    ],
)
def test_a_cell_that_could_not_install_says_so_in_one_sentence(
    made: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = nbformat.read(REPO / "notebooks" / "00_start_here.ipynb", as_version=4)
    (cell,) = [cell for cell in book.cells if "google.colab" in cell.source]
    if made is not None:
        script = tmp_path / "visdepth" / "visdepth_utils" / "notebooks" / "colab.py"
        script.parent.mkdir(parents=True)
        script.write_text(made)
    url = (tmp_path / "no repository").as_uri()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("VISDEPTH_REPO", url)
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    # Its history would be a file that every user has.
    monkeypatch.setattr("IPython.core.history.HistoryManager.enabled", False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    result = InteractiveShell().run_cell(cell.source)
    if message:
        assert message.format(url) in str(result.error_in_exec)
    else:
        result.raise_error()
        assert sys.path[0] == str(tmp_path / "visdepth")
