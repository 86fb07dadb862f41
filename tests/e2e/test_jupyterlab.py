"""JupyterLab as a reader uses it: open notebook 01, run all cells, see figures and verdict."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest

from tests.browser import chromium, chromium_or_skip

ROOT = Path(__file__).resolve().parents[2]
NAME = "01_image_tokens_stabilise.ipynb"
TOKEN = "only-for-this-test"
CODE = ".jp-Notebook .jp-CodeCell"
PROMPTS = f"{CODE} .jp-InputPrompt"
WIDTHS = "all => all.map(image => image.complete ? image.naturalWidth : 0)"


def stored_figures() -> int:
    """How many pictures the committed notebook shows."""
    cells = nbformat.read(ROOT / "notebooks" / NAME, as_version=4).cells
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return sum("image/png" in data for data in shown)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lab_environment(folder: Path) -> dict[str, str]:
    """As `make lab` has it, without the settings and open tabs that a user may have."""
    env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "JUPYTER_PATH")}
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        env[f"JUPYTER_{name}"] = str(folder / name.lower())
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # Cells out of sight are not drawn by default; a reader would scroll.
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps({"windowingMode": "none"}))
    env["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    env["JUPYTERLAB_WORKSPACES_DIR"] = str(folder / "workspaces")
    env["JUPYTER_PREFER_ENV_PATH"] = "1"
    env["VISDEPTH_RESULTS"] = str(folder / "results")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    return env


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server on a copy of the notebook with few samples and no outputs; its address."""
    chromium_or_skip()
    folder = tmp_path_factory.mktemp("lab")
    book = nbformat.read(ROOT / "notebooks" / NAME, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = cell.source.replace("n_samples = 48", "n_samples = 6")
    (folder / "root" / "notebooks").mkdir(parents=True)
    nbformat.write(book, folder / "root" / "notebooks" / NAME)
    port = free_port()
    call = [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--ServerApp.port={port}"]
    call += [f"--ServerApp.root_dir={folder / 'root'}", f"--IdentityProvider.token={TOKEN}"]
    call += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", "--allow-root"]
    log = folder / "log"
    with log.open("w") as stream:
        server = subprocess.Popen(call, env=lab_environment(folder), stdout=stream, stderr=stream)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield address, folder
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def folded() -> set[int]:
    """Numbers of the code cells whose source the notebook hides."""
    book = nbformat.read(ROOT / "notebooks" / NAME, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    hidden = {i for i, cell in enumerate(code, 1) if cell.metadata.get("jupyter")}
    assert hidden and all(code[i - 1].metadata.jupyter.source_hidden for i in hidden)
    return hidden


def test_run_all_cells_shows_the_figures_and_the_verdict(lab: tuple[str, Path]) -> None:
    address, folder = lab
    size = {"viewport": {"width": 1280, "height": 1000}}
    with chromium(folder / "profile", **size) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{address}/lab/tree/notebooks/{NAME}?token={TOKEN}")
        page.locator(CODE).first.wait_for()
        # Before its kernel is there, a notebook takes the command and does nothing.
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
        assert page.locator(".jp-OutputArea-output img").count() == 0

        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator("[data-command='runmenu:restart-and-run-all']").click()
        page.locator(".jp-Dialog-button.jp-mod-accept").click()
        total = page.locator(CODE).count()
        page.wait_for_function(
            "([where, last]) => { const all = document.querySelectorAll(where);"
            " return all[all.length - 1].textContent.trim() === `[${last}]:`; }",
            arg=[PROMPTS, total],
            timeout=240_000,
        )
        page.screenshot(path=folder / "end.png")
        prompts = [text.strip() for text in page.locator(PROMPTS).all_inner_texts()]
        # A folded cell has no prompt.
        assert prompts == [f"[{i}]:" if i not in folded() else "" for i in range(1, total + 1)]
        error = "application/vnd.jupyter.error"
        stderr = "application/vnd.jupyter.stderr"
        for kind in (error, stderr):
            found = page.locator(f".jp-OutputArea-output[data-mime-type='{kind}']")
            assert found.all_inner_texts() == []

        figures = page.locator(f"{CODE} .jp-OutputArea-output img")
        widths = figures.evaluate_all(WIDTHS)
        assert len(widths) == stored_figures() > 0
        assert min(widths) > 300
        figures.first.scroll_into_view_if_needed()
        assert figures.first.bounding_box()["width"] > 300
        page.screenshot(path=folder / "figure.png")

        (entry,) = json.loads((folder / "results" / "base-quick-n6" / "claims.json").read_text())
        card = page.locator(".jp-RenderedHTMLCommon table", has_text=entry["statement"])
        assert card.count() == 1
        card.scroll_into_view_if_needed()
        assert card.is_visible()
        assert card.locator("tr").first.inner_text().split() == ["C1", *entry["verdict"].split()]
        page.screenshot(path=folder / "verdict.png")
