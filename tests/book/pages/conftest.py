"""The rendered book, a server of its pages and a browser without a network."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of the rendered book, and what its build printed; all workers share them."""
    filelock = pytest.importorskip("filelock")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())
    folder = tmp_path_factory.getbasetemp().parent / f"book-{run}"
    folder.mkdir(exist_ok=True)
    program = Path(sys.executable).with_name("jupyter-book")
    options = ["--path-output", str(folder), "-W", "-n", "--keep-going", "--quiet"]
    log = folder / "log.txt"
    with filelock.FileLock(folder / "lock"):
        if not log.exists():
            call = [program, "build", str(ROOT), *options]
            done = subprocess.run(call, capture_output=True, text=True)
            log.write_text(f"{done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return folder / "_build" / "html", log.read_text()


@pytest.fixture(scope="session")
def home(built):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(built[0]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(home):
    """One tab for all tests of a module, with its messages and the addresses that it asked for."""
    programs = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    program = next(filter(None, programs), None)
    if program is None:
        give_up = pytest.fail if os.environ.get("CIBR_BROWSER") == "required" else pytest.skip
        give_up("there is no Chromium on this machine: install it to test the pages of the book")
    from browser import ARGUMENTS, DESK
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        page = browser.new_context(viewport={"width": DESK, "height": 800}).new_page()
        page.set_default_navigation_timeout(120_000)  # half a minute is too short beside a sweep
        page.messages, page.requests = [], []
        page.on("console", lambda message: page.messages.append(message))
        page.on("pageerror", lambda error: page.messages.append(error))
        page.on("request", lambda request: page.requests.append(request.url))
        yield page
        browser.close()
