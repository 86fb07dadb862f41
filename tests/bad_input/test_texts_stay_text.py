"""What a model says stays text where a notebook shows it: tables, chains, verdicts, prints.

The report and its explorer are in ``e2e/test_report_page.py``.
"""

from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt

from tests import tiny
from tests.browser import Watched, chromium
from visdepth_utils.claims.verdict import Verdict
from visdepth_utils.data.tasks import Task
from visdepth_utils.measure import chains
from visdepth_utils.plots.display import picture_grid, sample_table
from visdepth_utils.plots.reasoning import chains_page
from visdepth_utils.report.pages import notebook_page

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(2)>"
BREAKOUT = "</td></pre></script><script>alert(3)</script><!--"
TEXTS = (SCRIPT, IMAGE, BREAKOUT, "&lt;b&gt; \\(x\\) $$y$$")


def shown() -> dict[str, object]:
    """Everything of ours that a notebook shows with texts of a model or of data in it."""
    samples = [replace(tiny.sample(i), prompt=text, reference=text) for i, text in enumerate(TEXTS)]
    results = pd.DataFrame(
        {"sample": [s.id for s in samples], "output": TEXTS, "score": [1.0] * len(TEXTS)}
    )
    rows = [
        {**s.labels(), "mode": "remove", "depth": depth, "control": "", "output": output}
        for s, text in zip(samples, TEXTS, strict=True)
        for depth, output in ((0, f"a {text}"), (1, f"{text} answer is {text}"))
    ]
    compared = chains.compare(pd.DataFrame(rows))
    verdict = Verdict(
        *("C1", BREAKOUT, SCRIPT, "weaker", 0.1, (0.0, 0.2), 3, 0.1, {}, "01_x", IMAGE),
        details=pd.DataFrame({"measure": [SCRIPT]}),
    )
    return {
        "samples": sample_table(Task("vqa", samples, 4, "x"), results, n=4, width=200),
        "chains": chains_page(compared, {s.id: s.prompt for s in samples}, [0], n=4),
        "verdict": verdict,
        "details": verdict.details,
        "outputs": pd.concat([compared[["output", "chain", "answer"]]]),
    }


def _bundle(value: object) -> dict:
    """What a kernel would put into the notebook for a value."""
    data, _ = DisplayFormatter().format(value)
    return {name: data[name] for name in ("text/plain", "text/html") if name in data}


@pytest.mark.parametrize("name", ["samples", "chains", "verdict", "details", "outputs"])
def test_no_tag_of_a_text_becomes_one_of_the_page(name: str) -> None:
    html = _bundle(shown()[name])["text/html"]
    assert "&lt;" in html
    for tag in ("<script", "<img", "</script"):
        assert tag not in html.lower()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An executed notebook with such outputs, as the page that a run keeps."""
    folder = tmp_path_factory.mktemp("run")
    cells = []
    for value in shown().values():
        output = nbformat.v4.new_output("display_data", data=_bundle(value))
        cells.append(nbformat.v4.new_code_cell("1", outputs=[output]))
    said = "\n".join(TEXTS)
    streams = [
        nbformat.v4.new_output("stream", name=name, text=said) for name in ("stdout", "stderr")
    ]
    plain = nbformat.v4.new_output("display_data", data={"text/plain": said})
    failed = nbformat.v4.new_output("error", ename="X", evalue=SCRIPT, traceback=[said])
    for output in (*streams, plain, failed):
        cells.append(nbformat.v4.new_code_cell(f"# {said}", outputs=[output]))
    (folder / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "00_a.ipynb")
    assert notebook_page(folder, "00_a") == "notebooks/00_a.html"
    return folder / "notebooks" / "00_a.html"


def test_the_page_of_a_notebook_runs_no_text(page: Path, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as context:
        watched = Watched(context)
        watched.open(page)
        watched.page.wait_for_timeout(300)
        assert watched.errors == [] and watched.outside() == []
        assert watched.page.locator("img[src=x]").count() == 0
        texts = watched.page.locator("script").all_inner_texts()
        assert not any("alert(" in text for text in texts)
        seen = watched.page.locator("body").inner_text()
        for text in (SCRIPT, IMAGE, BREAKOUT):
            assert seen.count(text) >= 8
        bad = tmp_path / "bad.html"  # the same page with one text that was not escaped
        bad.write_text(page.read_text().replace("</body>", f"{SCRIPT}</body>"))
        watched.open(bad)
        watched.page.wait_for_timeout(300)
        assert "dialog: 1" in watched.errors


def test_money_in_a_question_is_no_formula() -> None:
    title = "from $5 to $x^$ or \\frac{ ?"
    fig = picture_grid([tiny.picture(0)], 16, [title])
    fig.canvas.draw()
    assert fig.axes[0].get_title() == title
    plt.close(fig)
