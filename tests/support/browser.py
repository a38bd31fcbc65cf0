"""Chromium, driven by Playwright, that reaches nothing but what a test has started."""

import os
import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",  # containers of CI have no user namespaces
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Skips where there is no Chromium; in CI that is a failure."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        missing = "These tests need Chromium: apt-get install chromium, or any other way that puts it on PATH."
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=path, args=list(_ARGUMENTS), timeout=120_000)
        yield launched
        await launched.close()
