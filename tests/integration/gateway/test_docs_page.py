"""The API's reference page as a browser shows it: from this host alone, in every width, without a script."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Page, Request, Route

from infra.local.stack import Stack
from services.gateway.description import openapi
from tests.support.browser import browser
from tests.support.processes import TestedService, running_service

__all__ = ["browser"]

DOCUMENT = openapi.document()
PHONE = {"width": 390, "height": 800}
DESK = {"width": 1400, "height": 900}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TestedService]:
    """No other service runs: the page needs none."""
    async with running_service(stack, "gateway", tmp_path_factory.mktemp("docs") / "gateway.log") as service:
        yield service


class Visit:
    """A page, what it asked for, and what went wrong in it."""

    def __init__(self, page: Page, host: str) -> None:
        self.page = page
        self.asked: list[str] = []
        self.foreign: list[str] = []
        self.wrong: list[str] = []
        self._host = host
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("requestfailed", lambda request: self.wrong.append(request.url))

    async def route(self, route: Route, request: Request) -> None:
        address = urlsplit(request.url)
        if address.netloc == self._host:
            self.asked.append(address.path)
            await route.continue_()
        else:
            self.foreign.append(request.url)
            await route.abort()

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:  # a breach of the content security policy is one
            self.wrong.append(message.text)


@pytest_asyncio.fixture(loop_scope="session")
async def visit(browser: Browser, gateway: TestedService) -> AsyncIterator[Visit]:
    context = await browser.new_context(viewport=DESK, color_scheme="light")  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    page = await context.new_page()
    visit = Visit(page, urlsplit(gateway.url).netloc)
    await context.route("**/*", visit.route)
    await page.goto(f"{gateway.url}/api/docs", wait_until="networkidle")
    yield visit
    await context.close()


async def test_the_page_asks_for_itself_and_its_styles_and_nothing_is_wrong(visit: Visit) -> None:
    assert visit.foreign == []
    assert visit.wrong == []
    styles = [path for path in visit.asked if path.endswith(".css")]
    assert visit.asked == ["/api/docs", *styles]
    assert len(styles) == 1
    assert await visit.page.evaluate("document.scripts.length") == 0


async def test_every_operation_is_shown_and_found_from_the_navigation(visit: Visit) -> None:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            section = visit.page.locator(f"section#{operation['operationId']}")
            assert await section.locator("h3").inner_text() == operation["summary"].replace("`", "")
            assert await section.locator(".request .path").inner_text() == path
            assert await section.locator(".request .method").inner_text() == method.upper()
    await visit.page.get_by_role("navigation").locator("a[href='#update_ticket']").click()
    heading = visit.page.locator("section#update_ticket h3")
    await visit.page.wait_for_function("location.hash === '#update_ticket'")
    box = await heading.bounding_box()
    assert box is not None
    assert 0 <= box["y"] < DESK["height"] / 2


async def test_it_fits_a_phone_and_its_contents_are_a_menu(visit: Visit) -> None:
    page = visit.page
    link = page.get_by_role("navigation").locator("a[href='#search']")
    assert await link.is_visible()
    await page.set_viewport_size(PHONE)  # type: ignore[arg-type]
    assert not await link.is_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    await page.get_by_text("Contents", exact=True).click()
    assert await link.is_visible()
    await page.set_viewport_size(DESK)  # type: ignore[arg-type]
    assert await page.evaluate("document.documentElement.scrollWidth") <= DESK["width"]


async def test_it_is_dark_for_who_likes_it_dark(visit: Visit) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = await visit.page.evaluate(colour)
    await visit.page.emulate_media(color_scheme="dark")
    dark = await visit.page.evaluate(colour)
    assert light == "rgb(255, 255, 255)"
    assert max(int(part) for part in dark.removeprefix("rgb(").rstrip(")").split(",")) < 40


async def test_caches_may_keep_it_and_its_styles(gateway: TestedService) -> None:
    async with aiohttp.ClientSession(gateway.url) as client:
        async with client.get("/api/docs") as page:
            text = await page.text()
            assert page.headers["Cache-Control"] == "public, max-age=300"
            assert page.headers["Surrogate-Key"] == "docs"
            assert page.headers["Content-Type"] == "text/html; charset=utf-8"
            assert "'unsafe-inline'" not in page.headers["Content-Security-Policy"]
            assert len(text) < 1_000_000
        async with client.get("/api/docs", headers={"If-None-Match": page.headers["ETag"]}) as again:
            assert again.status == 304
        (styles,) = [part.partition('"')[0] for part in text.split('<link rel="stylesheet" href="')[1:]]
        async with client.get(styles) as style:
            assert style.headers["Cache-Control"] == "public, max-age=31536000, immutable"
            assert style.headers["Content-Type"] == "text/css; charset=utf-8"
        async with client.get("/api/docs/reference.0123456789abcdef.css") as other:
            assert other.status == 404
        async with client.get("/api/openapi.json") as document:
            assert document.headers["Surrogate-Key"] == "openapi"
            assert await document.json() == DOCUMENT
