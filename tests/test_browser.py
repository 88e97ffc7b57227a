"""End to end: JupyterLab in a real browser opens 13.1, runs it, and shows the learner what it promises."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from labkit.layout import NOTEBOOKS, ROOT
from labkit.serving.ports import free_port

TOKEN = "browser-test"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PATIENCE = 180_000  # milliseconds: a loaded machine answers a click in more than the usual 5 s

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed; .ci/run installs one")


def jupyter_home(tmp_path: Path) -> dict[str, str]:
    """An environment in which no setting of this user counts, no news is shown, and no pack of theirs is touched."""
    config = tmp_path / "config" / "labconfig"
    config.mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (config / "page_config.json").write_text(json.dumps(quiet))
    return os.environ | {
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "LABKIT_EVIDENCE": str(tmp_path / "pack"),
    }


def copy_of_the_workbook(tmp_path: Path) -> Path:
    """Notebooks to open and save freely, beside links to the rest."""
    workbook = tmp_path / "workbook"
    shutil.copytree(NOTEBOOKS, workbook / "notebooks")
    for name in ("labkit", "data"):
        (workbook / name).symlink_to(ROOT / name, target_is_directory=True)
    return workbook


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on a copy of the workbook."""
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command += [f"--ServerApp.root_dir={copy_of_the_workbook(tmp_path)}"]
    with open(tmp_path / "jupyter.log", "w") as log:
        server = subprocess.Popen(command, env=jupyter_home(tmp_path), cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/api", server, tmp_path / "jupyter.log")
        yield f"http://127.0.0.1:{port}/lab/tree/notebooks/13_1_compute_route.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def test_a_learner_runs_13_1_in_the_browser(lab, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    committed = (NOTEBOOKS / "13_1_compute_route.ipynb").read_bytes()
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments, timeout=PATIENCE)
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        try:
            page.goto(lab)
            expect(page.locator(".jp-NotebookPanel")).to_be_visible()
            expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).click()

            table = page.locator(".jp-OutputArea table", has_text="device_reason")
            expect(table).to_be_visible()
            picker = page.locator(".jp-OutputArea .widget-toggle-buttons")
            expect(picker).to_be_visible()
            expect(page.locator(".jp-OutputArea img").first).to_be_visible()
            expect(page.get_by_text("Lesson 13.1 on the route local_cpu: 3 of 3")).to_be_visible()

            picker.get_by_role("button", name="Rented GPU").click()
            expect(page.locator(".widget-html", has_text="CUDA acceptance, when every training row")).to_be_visible()
            expect(page.locator("[data-mime-type='application/vnd.jupyter.stderr']")).to_have_count(0)
        finally:
            page.screenshot(path=tmp_path / "13_1.png")
            browser.close()
    assert (tmp_path / "pack" / "environment_report.txt").is_file()
    assert (NOTEBOOKS / "13_1_compute_route.ipynb").read_bytes() == committed
