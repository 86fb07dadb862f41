"""The site: every page is in its contents, and no page of it is run."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INDEX = (ROOT / "site" / "index.md").read_text(encoding="utf-8")


def test_the_contents_hold_every_notebook_and_page() -> None:
    listed = re.findall(r"^([\w/*]+)$", INDEX, re.M)
    pages = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/*.md"), *ROOT.glob("site/*.md")]
    for page in pages:
        name = page.relative_to(ROOT).with_suffix("")
        name = Path(name.name) if name.parts[0] == "site" else name
        assert name.name == "index" or any(name.match(entry) for entry in listed), name


def test_the_site_shows_what_the_notebooks_hold() -> None:
    settings: dict = {}
    exec((ROOT / "site" / "conf.py").read_text(encoding="utf-8"), settings)
    assert settings["nb_execution_mode"] == "off"
    assert "launch_buttons" not in settings["html_theme_options"], "nobody can clone from there"
