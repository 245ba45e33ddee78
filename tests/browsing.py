"""The rendered book in a browser: a server on the loopback, and Chromium with every other host cut off."""

import functools
import gzip
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from axe_playwright_python.sync_playwright import Axe

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
# Names of hosts lead nowhere. Without its own sandbox, since that refuses to run as root; the pages are ours.
ARGUMENTS = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-sandbox"]
COMPRESSED = (".html", ".js", ".css", ".json", ".svg")


def book_pages() -> list[str]:
    """The pages of the book as _toc.yml lists them, the first page first."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


def chromium() -> str | None:
    """The browser's program, or None."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


def browser_is_required() -> bool:
    """Whether a missing browser is a failure and no skip: continuous integration says so."""
    return os.environ.get("CIBR_BROWSER") == "required"


@functools.cache
def _compressed(path: Path) -> bytes:
    return gzip.compress(path.read_bytes(), 5)


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, text compressed and all of it cached, as static hosts have it."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=3600")
        super().end_headers()

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.suffix not in COMPRESSED or not path.is_file():
            super().do_GET()
            return
        body = _compressed(path)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on the loopback; gives its address."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@dataclass
class Visit:
    """A page in the browser, and what went wrong while it was open.

    Args:
        page: Playwright's page.
        errors: messages of the console, uncaught exceptions, failed requests and bad statuses.
        strangers: addresses of other hosts that were asked for; the browser finds none of them.
        n_bytes: size of all bodies as they were sent.
    """

    page: object
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    n_bytes: int = 0

    def watch(self, home: str) -> None:
        """Record what goes wrong from now on."""
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"{request.url}: {request.failure}"))
        self.page.on("requestfinished", self._count)
        self.page.on("request", lambda request: self._note_stranger(request.url, home))

    def _count(self, request: object) -> None:
        response = request.response()
        if response.status >= 400:
            self.errors.append(f"{request.url}: {response.status}")
        self.n_bytes += request.sizes()["responseBodySize"]

    def _note_stranger(self, address: str, home: str) -> None:
        if not address.startswith((home, "data:", "blob:")):
            self.strangers.append(address)

    def open(self, address: str) -> None:
        """Go to an address and wait until all is loaded and its equations are typeset."""
        self.page.goto(address)
        # Colours are read as they end up, not halfway from one theme to the other.
        self.page.add_style_tag(content="*, ::before, ::after { transition: none !important; }")
        self.page.evaluate("async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }")

    def show(self, width: int, theme: str) -> None:
        """Give the window a width and the page a theme, and wait until it is laid out."""
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.evaluate(
            """theme => new Promise(done => {
                document.documentElement.dataset.theme = theme;
                requestAnimationFrame(() => requestAnimationFrame(done));
            })""",
            theme,
        )


# Marks one piece of text for each way that text is set: its colour, what lies behind it, its size and its weight.
MARK_SAMPLES = """() => {
    const seen = new Set();
    const behind = e => {
        const colour = getComputedStyle(e).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" && e.parentElement ? behind(e.parentElement) : colour;
    };
    for (const e of document.querySelectorAll("body *")) {
        const style = getComputedStyle(e);
        const key = [style.color, behind(e), style.fontSize, style.fontWeight].join();
        const text = [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.textContent.trim());
        delete e.dataset.sample;
        if (text && !e.closest("mjx-container, script, style, noscript") && !seen.has(key)) {
            seen.add(key);
            e.dataset.sample = "";
        }
    }
    return seen.size;
}"""


def axe_barriers(page: object, context: dict, options: dict) -> list[tuple[str, str, str]]:
    """The serious and the critical violations that axe finds: rule, first element and what is wrong with it."""
    # Without an account of what passed and without fetching styles again: both take most of the time.
    options = {"resultTypes": ["violations"], "preload": False, **options}
    found = Axe().run(page, context=context, options=options).response["violations"]
    return [
        (rule["id"], rule["nodes"][0]["html"][:200], rule["nodes"][0]["failureSummary"][:300])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def broken_links(links: list[str], home: str, folder: Path) -> list[str]:
    """Those links to the book itself whose file is missing, or whose anchor the file does not hold."""
    broken = []
    for link in links:
        if not link.startswith(home):
            continue
        file = folder / urlsplit(link).path.lstrip("/")
        anchor = urlsplit(link).fragment
        if not file.is_file() or (anchor and f'id="{anchor}"' not in file.read_text(encoding="utf-8")):
            broken.append(link.removeprefix(home))
    return broken
