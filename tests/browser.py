"""One headless Chromium for tests that look at pages: where it is, how it starts, what is wrong."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlparse
from urllib.request import url2pathname

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str | None:
    """CHROMIUM in the environment, or the first that is in the path."""
    if named := os.environ.get("CHROMIUM"):
        return shutil.which(named)
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def chromium_or_skip() -> str:
    """The browser; without one the test is skipped, and in continuous integration it fails."""
    if found := find_chromium():
        return found
    reason = "no Chromium found: install it, or name one with CHROMIUM=/path"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def chromium(profile: Path, **options: object) -> Iterator[object]:
    """A started browser with a profile folder of its own (playwright's BrowserContext)."""
    path = chromium_or_skip()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=path, args=ARGUMENTS, headless=True, **options
        )
        try:
            yield context
        finally:
            context.close()


class Watched:
    """A page that remembers its errors and what it asked for."""

    def __init__(self, context: object, width: int = 1280, height: int = 900) -> None:
        self.page = context.new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, file: Path) -> object:
        self.page.goto(file.resolve().as_uri(), wait_until="load")
        return self.page

    def outside(self) -> list[str]:
        """Requests that left the folder of the page."""
        return [url for url in self.requests if urlparse(url).scheme not in ("file", "data")]

    def _said(self, message: object) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _dialog(self, dialog: object) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()


def unresolved(page: object) -> list[str]:
    """Links to files or places that are not there. Addresses of the network are not followed."""
    links = page.eval_on_selector_all("a[href]", "all => all.map(a => a.getAttribute('href'))")
    bad = []
    for link in links:
        url, place = urldefrag(urljoin(page.url, link))
        if urlparse(url).scheme != "file":
            continue
        if not Path(url2pathname(urlparse(url).path)).is_file():
            bad.append(link)
        elif place and url == urldefrag(page.url)[0]:
            found = page.evaluate("id => !!document.getElementById(id)", place)
            bad += [] if found else [link]
    return bad


CLIPPED = """() => {
  const wide = [];
  const root = document.documentElement;
  const check = (name, needs, has) => {
    if (has && needs > has) wide.push(`${name}: ${needs} in ${has}`);
  };
  check('page', root.scrollWidth, root.clientWidth);
  for (const table of document.querySelectorAll('table')) {
    check(table.className, table.scrollWidth, table.parentElement.clientWidth);
    for (const cell of table.querySelectorAll('th, td'))
      check(cell.textContent.slice(0, 60), cell.scrollWidth, cell.clientWidth + 1);
  }
  return wide;
}"""


def clipped(page: object) -> list[str]:
    """Tables, cells or the page itself that are wider than the room they have, all details open."""
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    return page.evaluate(CLIPPED)
