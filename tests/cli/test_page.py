"""The chat page in headless Chromium: a conversation, its figures, the comparison with a full KV cache, keyboard, colors.

Skipped without Chromium. SCRIMP_SCREENSHOTS=DIRECTORY saves screenshots.
"""

import os
import pathlib
import shutil

import pytest

from conftest import ROOT
from test_serve import Server, model  # noqa: F401  (a fixture)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="SKIPPED: there is no Chromium here (Debian: apt-get install chromium)")

#: A long prompt: a quarter of its tokens is a small cache.
PASSAGE = (
    "Once upon a time there was an old king who lived in a castle by the sea with his three daughters. The eldest could sing, the second could "
    "ride, and the youngest knew the names of all the birds. Every evening they sat at the long table and told each other what they had seen "
    "that day: ships with red sails, a fox on the wall, a stranger who asked for bread. "
) * 2

#: Maximum time for an answer of the tiny model, ms.
PATIENCE = 60_000


@pytest.fixture(scope="module")
def address(model):  # noqa: F811
    """A server, or the one that SCRIMP_PAGE names."""
    if "SCRIMP_PAGE" in os.environ:
        yield os.environ["SCRIMP_PAGE"]
        return
    server = Server(model, "--kv-format", "f32")
    yield server.url
    assert server.stop() == 0


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page. Asserts that it requests nothing from other servers and logs no error."""
    context = browser.new_context(viewport={"width": 1200, "height": 760})
    page = context.new_page()
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(address)
    playwright.expect(page.locator("#model")).not_to_have_text("connecting")
    yield page
    assert not errors, errors
    assert all(url.startswith((address, "data:")) for url in asked), asked
    context.close()


def ask(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")
    playwright.expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE)


def slide(page, name, value):
    page.evaluate("([id, value]) => { const x = document.getElementById(id); x.value = value;"
                  " x.dispatchEvent(new Event('input', {bubbles: true})); }", [name, value])


def picture(page, name):
    if "SCRIMP_SCREENSHOTS" in os.environ:
        page.screenshot(path=pathlib.Path(os.environ["SCRIMP_SCREENSHOTS"]) / f"{name}.png")


def test_a_conversation_and_its_figures(page):
    assert page.evaluate("document.activeElement.id") == "text"
    page.fill("#tokens", "24")
    slide(page, "temperature", "0")
    ask(page, "Tell me about the sea.")
    ask(page, "And the hills?")
    assert page.locator("#left .user").all_inner_texts() == ["Tell me about the sea.", "And the hills?"]
    answers = page.locator("#left .assistant").all_inner_texts()
    assert len(answers) == 2 and all(answers), answers
    figures = page.locator("#left .figures").all_inner_texts()
    assert len(figures) == 2 and all("tok/s" in f and "KV" in f and "% of a full bf16 cache" in f for f in figures), figures
    page.click("#clear")
    assert page.locator("#left .said").count() == 0


def test_a_small_cache_beside_a_full_one(page):
    page.fill("#tokens", "24")
    slide(page, "temperature", "0")
    slide(page, "budget", "25")
    page.select_option("#format", "int8")
    page.check("#compare")
    assert "25% of the prompt tokens, snapkv, int8" in page.inner_text("#left-title")
    ask(page, PASSAGE + " Who lived in the castle?")
    small, full = (page.inner_text(f"#{side} .figures") for side in ("left", "right"))
    share = [int(text.split("% of a full")[0].split()[-1].removesuffix("%").split("MiB")[-1].split("KiB")[-1]) for text in (small, full)]
    assert share[0] < 60 < share[1], (small, full)
    picture(page, "page_light")
    page.emulate_media(color_scheme="dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(22, 23, 21)"
    picture(page, "page_dark")


def test_escape_stops_and_the_page_goes_on(page):
    page.fill("#tokens", "1500")
    page.fill("#text", "Go on for ever")
    page.press("#text", "Enter")
    playwright.expect(page.locator("#left .assistant")).not_to_be_empty(timeout=PATIENCE)
    page.keyboard.press("Escape")
    playwright.expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE)
    page.fill("#tokens", "4")
    ask(page, "Short now")
    assert page.locator("#left .assistant").count() == 2


def test_everything_is_reached_by_keys(page):
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    slide(page, "budget", "50")
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"budget", "policy", "crush", "format", "compare", "temperature", "tokens", "key", "clear", "text", "send"} <= reached


def test_without_a_chat_model_the_page_names_the_others(browser):
    server = Server(ROOT / "testdata" / "tiny-encoders" / "bert")
    page = browser.new_page()
    page.goto(server.url)
    playwright.expect(page.locator("#model")).to_contain_text("no language model")
    assert "bert (embed)" in page.inner_text("#model") and page.is_disabled("#send") and page.is_disabled("#text")
    page.close()
    assert server.stop() == 0


def test_an_error_is_shown(browser, address):
    page = browser.new_page()
    page.goto(address)
    playwright.expect(page.locator("#model")).not_to_have_text("connecting")
    ask(page, "word " * 30_000)
    assert "context" in page.inner_text("#left .error").lower() or "token" in page.inner_text("#left .error").lower()
    page.close()
