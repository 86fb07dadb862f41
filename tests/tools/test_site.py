"""The site: every page is in its contents, and no page of it is run."""

import re
import runpy
from pathlib import Path

import pytest

from tools import address

ROOT = Path(__file__).resolve().parents[2]
INDEX = (ROOT / "site" / "index.md").read_text(encoding="utf-8")


def test_the_contents_hold_every_notebook_and_page() -> None:
    listed = re.findall(r"^([\w/*]+)$", INDEX, re.M)
    pages = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/*.md"), *ROOT.glob("site/*.md")]
    for page in pages:
        name = page.relative_to(ROOT).with_suffix("")
        name = Path(name.name) if name.parts[0] == "site" else name
        assert name.name == "index" or any(name.match(entry) for entry in listed), name


@pytest.mark.parametrize("url", [address.PLACEHOLDER, "https://github.com/me/vis"])
def test_the_site_runs_nothing_and_launches_only_what_can_be_cloned(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(address, "repository", lambda: url)
    settings = runpy.run_path(str(ROOT / "site" / "conf.py"))
    assert settings["nb_execution_mode"] == "off"
    launches = "launch_buttons" in settings["html_theme_options"]
    assert launches == (url != address.PLACEHOLDER)
