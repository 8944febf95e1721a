"""Looks at the built site in a headless browser, at two widths, light and dark: make docs-test."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

BUILT = Path(__file__).parent / "_build" / "html"
SCREENSHOTS = BUILT.parent / "screenshots"
PAGES = (
    *("index", "getting_started", "choosing", "gallery/index", "gallery/04_two_minima"),
    *("methods", "recipes", "results", "reference", "reference/xsam_jax.xsam", "coming_from"),
)
WIDTHS = {"desktop": 1300, "phone": 390}
LARGEST = 1_000_000  # bytes of a page with all that it loads
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless browser of this machine."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *args: object) -> None:
        """Prints nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server of the site."""
    if not (BUILT / "index.html").exists():
        pytest.skip("the site is not built: make docs")
    handler = functools.partial(Quiet, directory=str(BUILT))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_is_accessible_and_loads_local_files_alone(
    name, width, scheme, browser, address
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    size = {"width": WIDTHS[width], "height": 900}
    page = browser.new_page(viewport=size, color_scheme=scheme)
    loaded, failed = [], []
    page.on("response", lambda r: (loaded if r.ok else failed).append(r))
    page.on("requestfailed", lambda request: failed.append(request))
    page.goto(f"{address}/{name}.html")
    page.wait_for_load_state("networkidle")
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name.replace('/', '_')}_{width}_{scheme}.png")

    assert not failed
    assert all(r.url.startswith(address) for r in loaded)
    assert sum(len(r.body()) for r in loaded) < LARGEST
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for math in page.locator("math").all():
        box = math.bounding_box()
        assert box is not None
        assert box["height"] > 5
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    results = axe.Axe().run(page).response["violations"]
    serious = [
        (found["id"], [node["html"][:100] for node in found["nodes"][:3]])
        for found in results
        if found["impact"] in ("serious", "critical")
    ]
    assert not serious
    page.close()


def test_the_search_finds_a_method(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/search.html?q=friendly_sam")
    page.wait_for_selector("ul.search li a", timeout=10_000)
    links = [link.get_attribute("href") for link in page.locator("ul.search li a").all()]
    assert any("reference/xsam_jax.friendly_sam.html" in link for link in links)
    page.close()


def test_formulas_of_a_method_are_shown(browser, address):
    page = browser.new_page()
    page.goto(f"{address}/reference/xsam_jax.xsam.html")
    assert page.locator("math[display=block]").count() == 1
    assert page.locator("math").count() > 10
    page.close()
