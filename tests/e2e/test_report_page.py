"""report.html in a browser: it shows, fits, links and stays text, and the explorer takes keys."""

import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest

from tests import browser, tiny
from tests.browser import Watched, chromium, clipped, unresolved
from visdepth_utils.data.samples import Sample
from visdepth_utils.report.page import notebooks_of, write_report
from visdepth_utils.runs.records import annotate
from visdepth_utils.runs.run import Run
from visdepth_utils.runs.settings import check_settings

SCRIPT = "<script>alert(1)</script>"
BREAKOUT = "</script><script>alert(2)</script><!--"
IMAGE = "<img src=x onerror=alert(3)>"
LAYERS = 4
OUTPUTS = ["nothing at all", f"a {SCRIPT} circle", f"a red {IMAGE}", "a red circle", "a red circle"]
WIDTHS = (390, 768, 1280)


def sweep(task: str, style: str, kl: str) -> pd.DataFrame:
    """Three samples, five depths, outputs that no page may run."""
    return pd.DataFrame(
        [
            {
                "sample": f"{task}-{i}",
                "image": f"p{i}",
                "task": task,
                "style": style,
                "mode": "remove",
                "depth": depth,
                "output": OUTPUTS[depth] if i == 0 else f"{BREAKOUT} sample {i} depth {depth}",
                "correct": float(depth >= 3),
                kl: 2.0 - depth / 2,
            }
            for i in range(3)
            for depth in range(LAYERS + 1)
        ]
    )


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, llava_path: Path) -> Path:
    """The report of a run made by hand, with hostile texts wherever a run has texts."""
    folder = tmp_path_factory.mktemp("reports") / "run"
    given = {"source": None, "n_samples": 3, "seed": 0, "device": "cpu", "dtype": "auto"}
    run = Run(folder, check_settings(model=str(llava_path), profile="quick", **given))
    rows = [
        {"measure": f"kept {name}: {SCRIPT}", "label": "used", "estimate": 1 / (3 + i), "lo": 0.1}
        | {"hi": 0.5, "margin": 0.05}
        for i, name in enumerate(("caption", "a" * 90))
    ]
    tiny_numbers = dict.fromkeys(("estimate", "lo", "hi"), -0.000123456789)
    rows.append({"measure": "small", "label": "", **tiny_numbers, "margin": None})
    for claim, verdict in (("C4", "weaker"), ("C5", "not supported"), ("C99", "inconclusive")):
        run.record(
            {
                "claim": claim,
                "model": "organisation/a-model-with-a-rather-long-name-3B-instruct",
                "statement": f"statement {BREAKOUT}",
                "verdict": verdict,
                "effect": 0.123456,
                "ci": [0.1, 0.2],
                "effect_label": "share",
                "control_effect": 0.01,
                "control_label": "control, the largest",
                "n_images": 3,
                "thresholds": {"contrast": {"value": 0.05, "reason": IMAGE}},
                "notebook": "04_cut" if claim == "C4" else "99_none",
                "reason": f"reason {IMAGE}",
                "details": rows,
                "controls": [{"control": "another picture", "effect": 0.1, "lo": 0.0, "hi": 0.2}],
            }
        )
    annotate(folder, notebooks={"04_truncation_is_task_dependent": {"settings": run.settings}})
    annotate(folder, notebooks={"06_x": {"error": f"ValueError: {SCRIPT}"}}, note=BREAKOUT)
    for name in ("04_curves", "98_beside"):
        fig, axis = plt.subplots()
        axis.plot([0, 1])
        run.figure(fig, name)
        plt.close(fig)
    for name in ("00_first", "04_truncation_is_task_dependent"):
        text = "[claims](../data/claims.yaml), [first](00_first.ipynb), [gone](99_gone.ipynb)"
        text += "\n## 1. Curves <b>\n\n**How to read it.** Up & <i>on</i>."
        drawn = nbformat.v4.new_code_cell('run.figure(fig, "04_curves")')
        cells = [nbformat.v4.new_markdown_cell(text), drawn]
        (folder / "notebooks").mkdir(exist_ok=True)
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / f"{name}.ipynb"
        )
    samples = [
        Sample(f"{task}-{i}", f"p{i}", (tiny.picture(i),), f"what ? {SCRIPT}", IMAGE, "", task)
        for task in ("caption", "reason")
        for i in range(3)
    ]
    removed = sweep("caption", "direct", "kl")
    frozen = removed.assign(mode="freeze", output="a red circle")
    other = removed[removed["depth"] % 2 == 0].assign(mode="freeze other image")
    run.explorer(pd.concat([removed, frozen, other]), samples)
    run.explorer(sweep("reason", "long", "kl_chain").assign(control=""), samples)
    return write_report(folder, notebooks_of(folder))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def watched(context: object, page_file: Path) -> Iterator[Watched]:
    made = Watched(context)
    made.open(page_file)
    yield made
    made.page.close()
    assert made.errors == []
    assert made.outside() == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_clipped(watched: Watched, width: int) -> None:
    watched.page.set_viewport_size({"width": width, "height": 900})
    assert clipped(watched.page) == []
    assert watched.page.locator("table").count() > 7
    assert watched.page.locator("figure img").count() == 2
    inside = "all => all.every(one => one.getBoundingClientRect().right <= innerWidth)"
    assert watched.page.eval_on_selector_all("main *:not(option)", inside)
    drawn = "all => all.every(image => image.complete && image.naturalWidth > 0)"
    assert watched.page.eval_on_selector_all("img", drawn)


def test_captions_are_the_notebook_s_words_and_text_only(watched: Watched) -> None:
    captions = watched.page.locator("figcaption").all_text_contents()
    assert captions[0].strip() == "Curves <b>. Up & <i>on</i>."
    assert captions[1].strip() == "beside"


def test_a_table_that_is_too_wide_would_be_found(watched: Watched) -> None:
    watched.page.set_viewport_size({"width": 390, "height": 900})
    watched.page.evaluate("document.querySelector('.rows').style.width = '900px'")
    assert any(line.startswith("page:") for line in clipped(watched.page))
    assert any(line.startswith("rows:") for line in clipped(watched.page))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(watched: Watched, width: int, scheme: str) -> None:
    page = watched.page
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    clipped(page)  # opens what is folded
    script = importlib.resources.files("axe_playwright_python") / "axe.min.js"
    page.evaluate(script.read_text(encoding="utf-8"))
    assert _serious(page) == []
    page.evaluate("document.querySelector('main p').style.color = 'var(--line)'")
    page.evaluate("document.querySelector('#explorer-depth').previousElementSibling.remove()")
    assert {rule for rule, _ in _serious(page)} == {"color-contrast", "label"}


def _serious(page: object) -> list[tuple[str, str]]:
    """Findings of axe-core that are serious or worse: rule, and the first element."""
    found = page.evaluate("axe.run().then(all => all.violations)")
    worst = [one for one in found if one["impact"] in ("serious", "critical")]
    return [(one["id"], one["nodes"][0]["html"]) for one in worst]


def test_every_link_resolves_and_notebooks_open_without_a_network(
    watched: Watched, context: object, page_file: Path
) -> None:
    assert unresolved(watched.page) == []
    assert watched.page.locator("a[href^='notebooks/']").count() == 3  # one in the section of C4
    for file in sorted((page_file.parent / "notebooks").glob("*.html")):
        notebook = Watched(context)
        notebook.open(file)
        assert unresolved(notebook.page) == []
        links = notebook.page.locator("a[href]").evaluate_all("all => all.map(a => a.textContent)")
        assert links == ["claims", "first"]
        assert notebook.errors == []
        assert notebook.outside() == []
        notebook.page.close()
    watched.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<a href=nowhere>x</a>')")
    assert unresolved(watched.page) == ["nowhere"]


def test_texts_of_a_model_stay_text(watched: Watched) -> None:
    page = watched.page
    assert page.locator("script").count() == 2  # the data and our own
    assert page.locator("img[src=x]").count() == 0
    shown = page.locator("body").inner_text()
    for text in (IMAGE, BREAKOUT):
        assert text in shown
    page.focus("#explorer-depth")
    seen = set()
    page.keyboard.press("Home")
    for _ in range(LAYERS + 1):
        seen.add(page.inner_text("#explorer-now"))
        page.keyboard.press("ArrowRight")
    assert seen == set(OUTPUTS)
    assert page.locator("#explorer-now script, #explorer-now img").count() == 0


def test_a_script_that_got_into_the_page_would_not_run(
    context: object, page_file: Path, tmp_path: Path
) -> None:
    text = page_file.read_text().replace("</body>", f"{SCRIPT}{IMAGE}</body>")
    for policy in (True, False):
        name = "http-equiv" if policy else "data-not-http-equiv"
        (tmp_path / "bad.html").write_text(text.replace("http-equiv", name, 1))
        bad = Watched(context)
        bad.open(tmp_path / "bad.html")
        bad.page.wait_for_timeout(200)
        bad.page.close()
        ran = [error for error in bad.errors if error.startswith("dialog")]
        assert ran == ([] if policy else ["dialog: 1", "dialog: 3"])
        if policy:
            assert len(bad.errors) >= 2
            assert all("Content Security Policy" in error for error in bad.errors)


def test_the_explorer_works_by_keyboard(watched: Watched) -> None:
    page = watched.page
    page.focus("#explorer-task")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "explorer-sample"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "remove"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "explorer-depth"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    for key, depth in (("End", 4), ("ArrowLeft", 3), ("ArrowLeft", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        assert page.inner_text("#explorer-now") == OUTPUTS[depth]
        assert page.inner_text("#explorer-where") == f"{depth} of 4 layers see the picture"
        value = page.get_attribute("#explorer-depth", "aria-valuetext")
        assert value == f"{depth} of 4 layers see the picture"
    status = page.inner_text("#explorer-status")
    assert status == ("1 word differs from the full model's output. Score 0, full model 1.")
    assert page.locator("#explorer-now mark").all_inner_texts() == [SCRIPT]
    assert page.locator("#explorer-full del").all_inner_texts() == ["red"]
    assert page.locator(".now").get_attribute("aria-live") == "polite"


def test_interventions_are_switched_by_keyboard_and_what_is_missing_is_said(
    watched: Watched,
) -> None:
    page = watched.page
    page.focus("#explorer-depth")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.focus("[name=explorer-mode]:checked")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#explorer-now") == "a red circle"
    assert page.inner_text("#explorer-where").startswith("1 of 4 layers process the picture")
    assert page.inner_text("#explorer-values") == (
        "At depth 1: remove 33%, freeze 0%."
    )  # the third one is not measured there
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#explorer-now") == "Not measured at this depth."
    page.keyboard.press("ArrowDown")  # the others are not in this run: back to the first
    assert page.inner_text("#explorer-now") == OUTPUTS[1]
    assert page.locator("[name=explorer-mode]:disabled").count() == 2
    page.select_option("#explorer-task", "1")
    assert page.locator("[name=explorer-mode]:disabled").count() == 4


@pytest.mark.parametrize("width", WIDTHS)
def test_slider_and_axis_are_aligned_and_points_can_be_pressed(
    watched: Watched, width: int
) -> None:
    page = watched.page
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(100)
    slider, chart = (
        page.locator(f"#explorer-{name}").bounding_box() for name in ("depth", "chart")
    )
    page.focus("#explorer-depth")
    for key, share in (("Home", 0), ("ArrowRight", 0.25), ("End", 1)):
        page.keyboard.press(key)
        thumb = slider["x"] + 12 + share * (slider["width"] - 24)
        marker = float(page.get_attribute("#explorer-chart .marker", "x1"))
        assert chart["x"] + marker == pytest.approx(thumb, abs=0.5)
    points = page.locator("#explorer-chart circle")
    assert points.count() == LAYERS + 1
    assert ": 0% at the chosen depth" in page.get_attribute("#explorer-chart", "aria-label")
    points.nth(1).hover()
    assert page.inner_text("#explorer-values").startswith("At depth 1: remove 33%")
    assert page.input_value("#explorer-depth") == "4"  # to hover is only to look
    points.nth(1).click()
    assert page.input_value("#explorer-depth") == "1"
    page.select_option("#explorer-measure", "1")
    assert page.inner_text("#explorer-values").startswith("At depth 1: remove 1.5 nats")
    texts = page.locator("#explorer-chart text")
    assert "Divergence (nats)" in texts.all_text_contents()
    box = "all => all.map(one => one.getBoundingClientRect()).map(b => [b.left, b.right, b.bottom])"
    edges = texts.evaluate_all(box)
    chart = page.locator("#explorer-chart").evaluate_all(box)[0]
    for left, right, bottom in edges:
        assert chart[0] - 0.5 <= left and right <= chart[1] + 0.5 and bottom <= chart[2] + 0.5


def test_the_gallery_leads_to_the_explorer(watched: Watched) -> None:
    page = watched.page
    assert page.locator(".gallery article").count() == 4
    first = page.locator(".gallery article").first
    assert first.locator("dd").all_inner_texts() == ["a red circle", OUTPUTS[2], "a red circle"]
    first.locator("a").click()
    assert page.inner_text("#explorer-now") == OUTPUTS[2]
    assert page.evaluate("location.hash") == "#look"


def test_another_sample_and_another_task_are_shown(watched: Watched) -> None:
    page = watched.page
    assert page.locator("#explorer-task option").all_inner_texts() == [
        "caption",
        "reason, long chains",
    ]
    page.focus("#explorer-depth")
    page.keyboard.press("Home")
    before = page.get_attribute("#explorer-pictures img", "src")
    page.select_option("#explorer-sample", "1")
    assert page.inner_text("#explorer-now") == f"{BREAKOUT} sample 1 depth 0"  # the depth is kept
    assert page.get_attribute("#explorer-pictures img", "src") != before
    page.select_option("#explorer-task", "1")
    assert page.inner_text("#explorer-now") == OUTPUTS[0]
    page.select_option("#explorer-measure", "1")
    assert "chain's tokens" in page.inner_text("#explorer-divergence")


def test_on_paper_the_details_are_open_and_the_controls_gone(watched: Watched) -> None:
    page = watched.page
    closed = page.locator("details:not([open]) table").first
    assert not closed.is_visible()
    page.emulate_media(media="print")
    assert closed.bounding_box()["height"] > 20
    assert not page.locator("#explorer-depth").is_visible()
    assert page.locator("#explorer-now").is_visible()


def test_the_page_is_small_and_its_data_is_the_table(page_file: Path, watched: Watched) -> None:
    assert page_file.stat().st_size < 300_000
    data = json.loads(watched.page.inner_html("#explorer-data"))
    words = [row["words"] for row in data[0]["samples"][0]["rows"]["remove"]]
    assert words == [text.split() for text in OUTPUTS]


def test_a_missing_browser_is_a_failure_in_continuous_integration_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(browser, "find_chromium", lambda: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium found"):
        browser.chromium_or_skip()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no Chromium found"):
        browser.chromium_or_skip()
