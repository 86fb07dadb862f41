"""Where this repository lives: written down once, in pyproject.toml, and copied from there.

Badges, the Colab cell of the notebooks and CITATION.cff cannot read another file, so they hold
copies. A fork changes all of them by one command, ``make address URL=...``. While the address is a
placeholder the badge, which would lead nowhere, is hidden, and the Colab cell says so.
"""

import re
import tomllib
from pathlib import Path

import nbformat

from visdepth_utils.common.files import REPO, write_text

__all__ = ["PLACEHOLDER", "badge", "colab_line", "repository", "spread_address"]

_GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)/?")
_ENTRY = re.compile(r'^(Repository = ")[^"]*(")$', re.MULTILINE)
_HIDDEN = "<!-- The Colab badge stands here once this repository has an address: make address -->"
_BADGE = re.compile(rf"\[!\[Open in Colab\]\(.*\)\]\(.*\)|{re.escape(_HIDDEN)}")
PLACEHOLDER = "https://github.com/visdepth/visdepth"
"""What stands in pyproject.toml as long as nobody can clone from there."""
_LINE = re.compile(r"^REPO = .*$", re.MULTILINE)
_CITED = re.compile(r'^(repository-code: ")[^"]*(")$', re.MULTILINE)


def repository(root: Path = REPO) -> str:
    """The address in pyproject.toml.

    Args:
        root: Of the checkout.

    Returns:
        ``https://github.com/<owner>/<name>``.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def badge(url: str, notebook: str) -> str:
    """The line that opens a notebook in Colab.

    Args:
        url: Of the repository, on GitHub: Colab opens notebooks from nowhere else.
        notebook: File name.

    Returns:
        Markdown; of the placeholder a comment, which is not shown.

    Raises:
        ValueError: For any other address.
    """
    if not (match := _GITHUB.fullmatch(url)):
        raise ValueError(f"address {url!r}: give https://github.com/OWNER/NAME")
    if url == PLACEHOLDER:
        return _HIDDEN
    colab = "https://colab.research.google.com"
    target = f"{colab}/github/{match[1]}/blob/main/notebooks/{notebook}"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({target})"


def colab_line(url: str) -> str:
    """The line of the Colab cell that says where to clone from, unless VISDEPTH_REPO does.

    Args:
        url: Of the repository.

    Returns:
        Python source.
    """
    said = "  # a placeholder" if url == PLACEHOLDER else ""
    return f'REPO = os.environ.get("VISDEPTH_REPO", "{url}"){said}'


def spread_address(url: str | None = None, root: Path = REPO) -> list[Path]:
    """Copy the address to wherever it is repeated; outputs of notebooks stay.

    Args:
        url: A new address, which pyproject.toml is given first; None for the one it has.
        root: Of the checkout.

    Returns:
        The files that changed.

    Raises:
        ValueError: Not an address on GitHub.
    """
    url = (url or repository(root)).rstrip("/").removesuffix(".git")
    badge(url, "")
    texts = {}
    for name, pattern in (("pyproject.toml", _ENTRY), ("CITATION.cff", _CITED)):
        old = (root / name).read_text(encoding="utf-8")
        texts[root / name] = pattern.sub(rf"\g<1>{url}\g<2>", old)
    for file in sorted((root / "notebooks").glob("*.ipynb")):
        book = nbformat.read(file, as_version=4)
        for cell in book.cells:
            if cell.cell_type == "markdown":
                cell.source = _BADGE.sub(badge(url, file.name), cell.source)
            elif "google.colab" in cell.source:
                cell.source = _LINE.sub(colab_line(url), cell.source)
        texts[file] = nbformat.writes(book) + "\n"
    changed = [file for file, text in texts.items() if file.read_text(encoding="utf-8") != text]
    for file in changed:
        write_text(file, texts[file])
    return changed
