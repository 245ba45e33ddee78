"""What tests of the rendered pages share: sizes of windows, scripts to run in a page, axe."""

from axe_playwright_python.sync_playwright import Axe

PHONE, DESK = 390, 1280
# Names of hosts lead nowhere. Without its own sandbox, since that refuses to run as root; the pages
# are ours.
ARGUMENTS = ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--no-sandbox"]
# Colours are read as they end up, not halfway from one theme to the other.
STILL = "*, ::before, ::after { transition: none !important; }"
WIDE = """() => {
    const style = e => getComputedStyle(e).overflowX;
    const scrolls = e => e && (/auto|scroll/.test(style(e)) || scrolls(e.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e.parentElement))
        .filter(e => !e.closest("mjx-assistive-mml, .visually-hidden"))
        .concat([...document.querySelectorAll("article div.math mjx-container")]
            .filter(e => e.scrollWidth > e.clientWidth + 1))
        .map(e => e.outerHTML.slice(0, 120))
        .concat(document.scrollingElement.scrollWidth > innerWidth ? ["the page itself"] : []);
}"""
SHOW = """theme => new Promise(done => {
    document.documentElement.dataset.theme = theme;
    requestAnimationFrame(() => requestAnimationFrame(done));
})"""


def barriers(page, context, **options):
    """The serious and the critical violations that axe finds: rule, first element and why."""
    options |= {"resultTypes": ["violations"], "preload": False}
    violations = Axe().run(page, context=context, options=options).response["violations"]
    serious = [v for v in violations if v["impact"] in ("serious", "critical")]
    return [(v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"]) for v in serious]


def errors(page, home):
    """What a page reported as an error or a warning, and what it asked of other hosts."""
    loud = [m for m in page.messages if getattr(m, "type", "error") in ("error", "warning")]
    # That a preloaded font was not used in time is said of a machine that is slow, not of the page.
    told = [text for text in map(str, loud) if "was preloaded using link preload" not in text]
    return told + [url for url in page.requests if not url.startswith((home, "data:", "blob:"))]
