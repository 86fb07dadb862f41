"""The repository's address: one place, and copies that agree with it."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml

from tools.__main__ import main
from tools.address import PLACEHOLDER, badge, colab_line, repository, spread_address
from visdepth_utils.common.files import REPO

_line = lambda url, name: colab_line(url)  # noqa: E731
FORK = "https://github.com/some-one/my.fork"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("pyproject.toml", "CITATION.cff"):
        shutil.copy(REPO / name, tmp_path / name)
    shutil.copytree(REPO / "notebooks", tmp_path / "notebooks")
    return tmp_path


def test_all_copies_agree_with_the_one_place(copy: Path) -> None:
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    assert spread_address(root=copy) == []
    assert before == {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    assert yaml.safe_load((copy / "CITATION.cff").read_text())["repository-code"] == repository()


def test_a_fork_changes_all_copies_and_nothing_else(copy: Path) -> None:
    old = repository()
    changed = spread_address(FORK + ".git", copy)
    books = sorted((copy / "notebooks").glob("*.ipynb"))
    assert changed == [copy / "pyproject.toml", copy / "CITATION.cff", *books]
    assert repository(copy) == FORK
    for book in books:
        cells = nbformat.read(book, as_version=4).cells
        assert cells[0].source == badge(FORK, book.name)
        assert sum(colab_line(FORK) in cell.source for cell in cells) == 1
        copies = (json.dumps(part(old, book.name))[1:-1] for part in (badge, _line))
        forks = (json.dumps(part(FORK, book.name))[1:-1] for part in (badge, _line))
        expected = (REPO / "notebooks" / book.name).read_text()
        for ours, theirs in zip(copies, forks, strict=True):
            assert expected.count(ours) == 1
            expected = expected.replace(ours, theirs)
        assert book.read_text() == expected
    assert FORK in (copy / "CITATION.cff").read_text()
    assert spread_address(old, copy) and spread_address(old, copy) == []


def test_a_placeholder_has_no_badge_and_the_cell_says_what_it_is() -> None:
    hidden = badge(PLACEHOLDER, "01_x.ipynb")
    assert re.fullmatch(r"<!-- [^>]* -->", hidden)  # a comment is not shown
    assert colab_line(PLACEHOLDER).endswith('visdepth")  # a placeholder')
    assert "colab-badge.svg" in badge(FORK, "01_x.ipynb")
    assert colab_line(FORK).endswith('my.fork")')


@pytest.mark.parametrize("url", ["visdepth", "https://example.org/a/b", "https://github.com/a"])
def test_an_address_that_colab_cannot_open_is_refused(url: str, copy: Path) -> None:
    with pytest.raises(ValueError, match="give https://github.com/OWNER/NAME"):
        spread_address(url, copy)
    assert repository(copy) == repository()


def test_the_command_finds_nothing_to_do(capsys: pytest.CaptureFixture) -> None:
    assert main(["address"]) == 0
    assert capsys.readouterr().out == f"{repository()}: 0 files changed\n"
