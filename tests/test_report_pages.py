"""The pages as people see them: in Chromium on a desk, on a phone and on paper, and judged by axe for accessibility."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from healthy_pack import edit, healthy_folder
from pypdf import PdfReader
from test_browser import BROWSER

from labkit.evaluation.compare import compare_runs, read_run
from labkit.grading import Submission, load_rubric
from labkit.grading.copies import Shared
from labkit.grading.grade import grade_submission, unreadable
from labkit.report.grades import write_grades
from labkit.report.page import write_comparison, write_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed; .ci/run installs one")

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
A4 = (595, 842)  # points


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        opened = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """One page of each kind, of a pack that has something of everything: supported, not yet and contradicted."""
    folder = tmp_path_factory.mktemp("pages")
    pack = Path(shutil.copytree(healthy_folder(tmp_path_factory), folder / "local_cpu"))
    run = read_run(pack)
    write_comparison([compare_runs(run, run)], [], folder / "comparison.html")
    rubric = load_rubric()
    ((good, _),) = grade_submission(Submission("alice", pack), rubric, folder)
    (pack / "README.md").unlink()
    edit(pack, "openllm_gpu_training_run/training_log.csv", ",cpu,", ",cuda,")
    ((bad, _),) = grade_submission(Submission("bob", pack), rubric, folder)
    copied = Shared(("eval_results.csv",), ("alice",), 1)
    rows = [good, replace(bad, shared=(copied,)), unreadable("carol.zip", "carol.zip", "it is damaged", "again")[0]]
    write_grades(rows, rubric, folder / "grades.html")
    return {"report": write_report(pack), "comparison": folder / "comparison.html", "grades": folder / "grades.html"}


@pytest.fixture
def show(browser, tmp_path):
    """Open a page at a size; fails afterwards when it asked for anything but itself, or its script had an error."""
    contexts, asked, errors = [], [], []

    def opened(path: Path, size: str = "desktop", anchor: str = ""):
        width, height = SIZES[size]
        contexts.append(browser.new_context(viewport={"width": width, "height": height}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url) if request.url != path.as_uri() else None)
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(path.as_uri() + anchor)
        page.screenshot(path=tmp_path / f"{path.stem}_{size}.png", full_page=True)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.endswith("#checklist")] == []
    assert errors == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["report", "comparison", "grades"])
def test_a_page_needs_no_sideways_scrolling_and_asks_for_nothing(pages, show, name, size):
    page = show(pages[name], size)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["report", "comparison", "grades"])
def test_axe_finds_no_serious_issue(pages, show, name, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = show(pages[name], size)
    page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    found = axe.Axe().run(page).response["violations"]
    serious = [f"{issue['id']}: {issue['nodes'][0]['html'][:200]}" for issue in found if issue["impact"] != "minor"]
    assert serious == []


def printed(page) -> PdfReader:
    return PdfReader(io.BytesIO(page.pdf(prefer_css_page_size=True)))


@pytest.mark.parametrize("made", ["damaged", "empty", "rented_gpu"])
def test_the_checklist_prints_alone_on_two_a4_pages(pages, show, tmp_path, made):
    """Also where everything is open, and each line has its next action."""
    path = pages["report"]
    if made != "damaged":
        (tmp_path / made).mkdir()
        if made == "rented_gpu":
            manifest = '{"schema": 1, "route": "rented_gpu", "git_commit": "%s", "files": {}}' % ("0" * 40)
            (tmp_path / made / "manifest.json").write_text(manifest)
        path = write_report(tmp_path / made)
    paper = printed(show(path, anchor="#checklist"))
    assert len(paper.pages) == 2
    assert [round(side) for side in paper.pages[0].mediabox[2:]] == pytest.approx(A4, abs=2)
    first, second = (page.extract_text() for page in paper.pages)
    assert "13.0 Checklist" in first
    assert "Quality gates" in first
    assert "Claims" in first
    assert "Artifacts" in second
    assert "Read by" in second


def test_the_whole_report_prints_with_the_checklist_last(pages, show):
    paper = printed(show(pages["report"]))
    texts = [page.extract_text() for page in paper.pages]
    assert 4 <= len(texts) <= 12
    assert "Evidence report" in texts[0]
    assert "13.0 Checklist" in texts[-2]
    assert "Read by" in texts[-1] or "Made by" in texts[-1]


def shown(page) -> list[str]:
    return page.locator("#grades tbody tr:visible th").all_inner_texts()


def test_grades_are_sorted_by_a_button_and_filtered_by_words_verdict_and_copies(pages, show):
    page = show(pages["grades"])
    assert shown(page) == ["alice", "bob", "carol.zip"]
    score = page.get_by_role("button", name="Score")
    score.click()
    assert shown(page) == ["carol.zip", "bob", "alice"]
    assert score.locator("..").get_attribute("aria-sort") == "ascending"
    score.click()
    assert shown(page) == ["alice", "bob", "carol.zip"]
    page.get_by_role("button", name="Minutes").click()
    assert shown(page)[-1] == "carol.zip"  # unknown stays last
    page.get_by_label("Verdict").select_option("contradicted")
    assert shown(page) == ["bob"]
    page.get_by_label("Verdict").select_option("")
    page.get_by_label("shared outputs only").check()
    assert shown(page) == ["bob"]
    page.get_by_label("shared outputs only").uncheck()
    page.get_by_label("Find").fill("damaged")
    page.get_by_text("1 of 3 rows").wait_for()
    assert shown(page) == ["carol.zip"]


def test_grades_are_complete_without_a_script(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["grades"].as_uri())
    assert shown(page) == ["alice", "bob", "carol.zip"]
    assert not page.locator("#controls").is_visible()
    context.close()
