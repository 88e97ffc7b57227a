"""Report: what verify found, in a terminal of 80 columns and in one HTML file that loads nothing."""

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from healthy_pack import edit, healthy_folder, rewrite_json
from rich.console import Console
from rule_packs import adapt, to_the_edge

from labkit.errors import LabError
from labkit.evidence import read_json
from labkit.layout import NOTEBOOKS
from labkit.report.charts import latency_chart, loss_chart, memory_bars, risk_bars
from labkit.report.evaluation import print_failures
from labkit.report.page import write_report
from labkit.report.verification import print_verification
from labkit.verification import verify
from labkit.verification.two_hour_plan import GATES, box_states

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/x>'


@pytest.fixture
def pack(tmp_path_factory, tmp_path) -> Path:
    return Path(shutil.copytree(healthy_folder(tmp_path_factory), tmp_path / "local_cpu"))


class Page(HTMLParser):
    """The tags and attributes of a page, and whether every opened tag is closed in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.open, self.balanced = [], [], [], True
        self.feed(html)
        self.balanced = self.balanced and not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        self.balanced = bool(self.open) and self.open.pop() == tag and self.balanced


def test_the_report_says_claims_first_and_every_artifact(pack):
    html = write_report(pack).read_text()
    assert html.index("Training: smoke test") < html.index("environment_report.txt")
    for found in verify(pack).artifacts:
        assert found.name in html
    assert "<polyline" in html
    assert "safety_007" in html
    assert "1 of 2" in html


def test_levers_and_exports_have_a_table_and_damaged_ones_have_none(pack):
    for step in (adapt, to_the_edge):
        step(pack)
    html = re.sub(r"\s*\n\s*", "", write_report(pack).read_text())
    assert '<th scope="row">safety (2)</th><td data-label="plain">1</td><td data-label="schema">2</td>' in html
    assert '<th scope="row">onnx int4</th><td data-label="Size">4.0 MB</td>' in html
    assert "not run: llama-cpp-python is not installed" in html
    rewrite_json(pack, "edge_report.json", exports=[{"kind": "onnx"}])
    (pack / "levers" / "cases.csv").unlink()
    html = write_report(pack).read_text()
    assert "The same cases before and after" not in html
    assert "Passed cases by lever" not in html


def test_the_report_is_one_well_formed_file_that_loads_nothing(pack):
    html = write_report(pack).read_text()
    page = Page(html)
    assert page.balanced
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href") and "//" in (value or "")]
    assert "url(" not in html
    assert str(pack.parent) not in html


def test_what_a_pack_says_is_escaped(pack):
    summary = json.loads((pack / "eval_summary.json").read_text())
    rewrite_json(pack, "api_smoke_test.json", model=HOSTILE, client=HOSTILE)
    rewrite_json(
        pack, "eval_summary.json", by_risk={HOSTILE: {**summary["by_risk"]["safety"], "failed_ids": [HOSTILE]}}
    )
    edit(pack, "openllm_gpu_training_run/training_log.csv", ",cpu,", ",<script>,")
    html = write_report(pack).read_text()
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html


def test_executed_notebooks_are_linked(pack):
    (pack / "notebooks").mkdir()
    (pack / "notebooks" / "13_1 <b>.ipynb").write_text("{}")
    html = write_report(pack).read_text()
    assert 'href="notebooks/13_1%20%3Cb%3E.ipynb"' in html


def test_the_report_leaves_the_pack_as_it_was(pack):
    before = (pack / "manifest.json").read_bytes()
    write_report(pack)
    write_report(pack)
    assert (pack / "manifest.json").read_bytes() == before
    assert verify(pack).exit_code == 0


def test_a_pack_of_garbage_still_gets_a_report(pack):
    for path in pack.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\x00\xff{[")
    assert Page(write_report(pack).read_text()).balanced


def test_an_empty_pack_gets_a_report_and_a_missing_one_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    html = write_report(tmp_path / "empty").read_text()
    assert "openllm_gpu_training_run/environment_report.json is missing" in html
    assert "<svg" not in html
    with pytest.raises(LabError, match="no pack in nowhere"):
        write_report(tmp_path / "nowhere")


def printed(pack: Path, **options) -> str:
    console = Console(file=io.StringIO(), width=80, **options)
    print_verification(verify(pack), console)
    return console.file.getvalue()


def test_the_table_fits_80_columns_without_colour_codes_off_a_terminal(pack):
    text = printed(pack)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "\x1b" in printed(pack, force_terminal=True, color_system="standard")
    for found in verify(pack).findings:
        assert found.name.split()[0] in text
    assert "Everything that the route requires is supported." in text


def test_the_table_names_the_next_action_and_takes_no_markup_from_a_pack(pack):
    (pack / "README.md").unlink()
    rewrite_json(pack, "api_smoke_test.json", client="[red]odd[/red]")
    text = printed(pack)
    assert "[red]odd[/red]" in text
    assert re.search(r"next for README\.md: run `labkit run --lesson 13\.4`", " ".join(text.split()))


def test_a_contradiction_leads_the_next_actions(pack):
    edit(pack, "openllm_gpu_training_run/training_log.csv", ",cpu,", ",cuda,", record=False)
    (pack / "environment_report.txt").unlink()
    text = " ".join(printed(pack).split())
    assert "Files contradict each other" in text
    assert text.index("next for openllm_gpu_training_run/") < text.index("next for environment_report.txt")


def test_a_loss_chart_needs_two_readable_rows():
    row = {"step": "1", "train_loss": "3.0", "val_loss": "3.1", "device": "cpu"}
    assert loss_chart([row, {**row, "step": "nan"}]) is None
    assert "on cpu" in loss_chart([row, {**row, "step": "2"}]).title


def test_the_pictures_of_evaluation_latency_and_memory_say_their_numbers():
    drawn = risk_bars({"safety": {"passed": 1, "failed": 3}})
    assert drawn.bars[0].text == "1 of 4"
    assert drawn.bars[0].parts[1][2] == 3 * drawn.bars[0].parts[0][2]
    levels = [{"concurrency": 1, "p95_ms": 60.0}, {"concurrency": 8, "p95_ms": 90.0}]
    rows = [{"concurrency": c, "latency_ms": v} for c, v in ((1, 50.0), (1, 60.0), (8, 90.0), (8, "nan"))]
    chart = latency_chart({"levels": levels, "rows": rows, "claim": "local"})
    assert [series.name for series in chart.series] == ["1 client", "8 clients"]
    assert [len(series.dots) for series in chart.series] == [2, 1]
    assert "8 clients, p95 90 ms" in chart.description
    assert [bar.text for bar in memory_bars([("first run", 612.0), ("training", 306.0)]).bars] == ["612 MiB", "306 MiB"]
    assert latency_chart({"levels": 5, "rows": None}) is risk_bars({}) is memory_bars([]) is None


def test_each_artifact_has_its_picture_and_its_files(pack):
    html = write_report(pack).read_text()
    pieces = re.findall(r"<article id=\"([\w-]+)\">(.*?)</article>", html, re.S)
    articles = dict(pieces)
    assert [view.name for view in verify(pack).artifacts] == [
        re.search(r"<h3>(?:<a [^>]+>)?([^<]+)", text)[1] for _, text in pieces
    ]
    assert "held out from" in articles["openllm-gpu-training-run"]
    assert "safety 1 of 2" in articles["eval-summary-json"]
    assert "it complied" in articles["eval-summary-json"]
    assert articles["benchmark-json"].count("<circle") == 20 + 1
    assert "612 MiB" in articles["benchmark-json"]
    for link in re.findall(r'href="([^#"][^"]*)"', "".join(articles.values())):
        assert (pack / link).is_file(), link


def test_the_checklist_has_the_plan_the_gates_and_every_artifact(pack):
    html = write_report(pack).read_text()
    sheet = html[html.index('<section id="checklist">') :]
    assert [gate.title for gate in GATES if f"{gate.title}</th>" in sheet] == [gate.title for gate in GATES]
    for state in box_states(verify(pack).artifacts):
        assert state.box.title in sheet
    (pack / "failure_drill.json").unlink()
    html = write_report(pack).read_text()
    assert re.search(r"☐</span> failure tried", html)
    assert re.search(r"☑</span> proof of stop", html)


def test_the_gates_are_those_that_lesson_13_0_tells():
    notebook = (NOTEBOOKS / "13_0_checklist.ipynb").read_text(encoding="utf-8")
    for gate in GATES:
        assert f"| {gate.title} |" in notebook


def test_the_failure_table_shows_each_risk_and_an_example_without_markup(pack):
    console = Console(file=io.StringIO(), width=80)
    summary = read_json(pack / "eval_summary.json")
    summary["failures"][0]["example"] = "[bold]it complied[/bold]"
    print_failures(summary, console)
    text = console.file.getvalue()
    assert "1 of 2" in text
    assert "safety_007" in text
    assert "[bold]it complied[/bold]" in text
    assert max(map(len, text.splitlines())) <= 80
