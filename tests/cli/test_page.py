"""The chat page in headless Chromium: with a tiny model, and with recorded answers, whose Markdown is known.

Skipped without Chromium. SCRIMP_SCREENSHOTS=DIRECTORY saves screenshots.
"""

import json
import os
import pathlib
import re
import shutil
import urllib.error
import urllib.request

import pytest

from conftest import ROOT, TINY
from recorded import Recorded
from test_serve import Server, model  # noqa: F401  (a fixture)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="SKIPPED: playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="SKIPPED: there is no Chromium here (Debian: apt-get install chromium)")

#: Maximum time for an answer, ms.
PATIENCE = 60_000

MARKDOWN = """# A sort

A **stable** sort keeps equal elements in *order*; see [the manual](https://docs.python.org/3/howto/sorting.html).

1. Split the list
2. Sort the parts
   - recursively
   - until a part has one element
3. Merge them

```python
def merge_sort(items: list) -> list:
    # A list of one element is sorted.
    if len(items) < 2:
        return items
    middle = len(items) // 2
    left, right = merge_sort(items[:middle]), merge_sort(items[middle:])
    return merge(left, right)
```

| sort | time | stable |
|---|---|---|
| merge sort | `n log n` | yes |
| quicksort | `n log n` on average | no |

> Measure before you choose.
"""

#: Each of these would set `window.hacked`, load a file of another host, or leave the page.
INJECTIONS = """<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2">
[link](javascript:window.hacked=3) [data](data:text/html,<script>1</script>)
![image](https://example.invalid/pixel.png)
<iframe srcdoc="<script>parent.hacked = 4</script>"></iframe>
<svg><animate onbegin="window.hacked = 5" attributeName=x dur=1s></svg>
<a href="https://example.invalid" onclick="window.hacked = 6" style="position:fixed;inset:0">x</a>
<form action="https://example.invalid"><input name=q></form>

```html"><img src=x onerror="window.hacked=7">
<script>window.hacked = 8</script>
```

| <b onmouseover="window.hacked=9">cell</b> |
|---|
| <math><mtext></mtext><style><img src=x onerror=window.hacked=10></style></math> |
"""


@pytest.fixture(scope="module")
def address(model):  # noqa: F811
    server = Server(model, "--kv-format", "f32")
    yield server.url
    assert server.stop() == 0


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page with its context. `close` asserts that it logged no error and requested nothing from other hosts."""

    def __init__(self, browser, url, **options):
        self.url, self.requested, self.errors = url, [], []
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 760}, **options})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.load()

    def load(self):
        self.page.goto(self.url)
        self.page.wait_for_selector("body[data-ready]", timeout=PATIENCE)

    def close(self):
        assert not self.errors, self.errors
        assert all(url.startswith((self.url, "data:", "blob:")) for url in self.requested), self.requested
        self.context.close()


@pytest.fixture
def opened(browser, address):
    """The page of a server with a tiny model."""
    opened = Opened(browser, address)
    yield opened
    opened.close()


@pytest.fixture
def page(opened):
    return opened.page


@pytest.fixture
def recorded(browser, address):
    """A function that opens a page whose answers are recorded."""
    all_opened, servers = [], []

    def record(*answers, options=None, **how):
        servers.append(Recorded(address, answers, **how))
        all_opened.append(Opened(browser, servers[-1].url, **(options or {})))
        all_opened[-1].server = servers[-1]
        return all_opened[-1]

    yield record
    for opened in all_opened:
        opened.close()
    for server in servers:
        server.stop()


def ask(page, text):
    page.fill("#text", text)
    page.press("#text", "Enter")
    done(page)


def done(page):
    playwright.expect(page.locator("#send")).to_be_visible(timeout=PATIENCE)


def set_options(page, **options):
    """Sets fields of the settings."""
    page.click("#open-settings")
    for name, value in options.items():
        field = page.locator(f"#{name}")
        kind = field.evaluate("x => x.type")
        if kind == "checkbox":
            field.set_checked(value)
        elif kind.startswith("select"):
            field.select_option(str(value))
        else:
            field.fill(str(value))
    page.click("#settings button")


def picture(page, name):
    if "SCRIMP_SCREENSHOTS" in os.environ:
        page.screenshot(path=pathlib.Path(os.environ["SCRIMP_SCREENSHOTS"]) / f"{name}.png")


def violations(page):
    """The serious violations that axe-core finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="SKIPPED: axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    return [(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found if v["impact"] in ("serious", "critical")]


# --- files

def test_files_are_cached_and_restricted(address):
    with urllib.request.urlopen(address + "/", timeout=10) as index:
        html, headers = index.read().decode(), index.headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "require-trusted-types-for 'script'" in policy
    assert headers["Cache-Control"] == "no-cache"
    with pytest.raises(urllib.error.HTTPError) as unchanged:
        urllib.request.urlopen(urllib.request.Request(address + "/", headers={"If-None-Match": headers["ETag"]}), timeout=10)
    assert unchanged.value.code == 304
    names = re.findall(r'page/[0-9a-f]{16}/[^"]+', html)
    assert len(names) == 2
    for name in names:
        with urllib.request.urlopen(f"{address}/{name}", timeout=10) as file:
            assert "immutable" in file.headers["Cache-Control"]
            assert file.headers["Content-Type"].startswith("text/css" if name.endswith("css") else "text/javascript")
    with pytest.raises(urllib.error.HTTPError) as old:
        urllib.request.urlopen(f"{address}/page/{'0' * 16}/app.js", timeout=10)
    assert old.value.code == 404


# --- a tiny model

def test_a_conversation_and_its_figures(page):
    assert page.evaluate("document.activeElement.id") == "text"
    set_options(page, tokens=24, temperature=0)
    ask(page, "Tell me about the sea.")
    ask(page, "And the hills?")
    assert page.locator(".question .text").all_inner_texts() == ["Tell me about the sea.", "And the hills?"]
    figures = page.locator(".answer .figures").all_inner_texts()
    assert len(figures) == 2 and all("% of a whole bf16 cache" in f for f in figures), figures
    assert "Cache if it were whole" in page.inner_text("#cache-of-chat") and page.is_visible("#meter")
    page.click("#holders summary")
    playwright.expect(page.locator("#holders")).to_contain_text("tiny-chat: weights")
    assert "Cache of this chat" in page.inner_text("#cache-of-chat")
    first = page.locator(".answer").nth(1).inner_text()
    page.get_by_label("Regenerate the answer").last.click()
    done(page)
    playwright.expect(page.locator(".turn")).to_have_count(2)
    assert page.locator(".answer .markdown").nth(1).inner_text() in first, "temperature 0 repeats the answer"


def test_a_small_cache_beside_a_whole_one(page):
    set_options(page, tokens=24, temperature=0, shrink=8, compare=True)
    ask(page, "Once upon a time there was an old king who lived in a castle by the sea with his three daughters. " * 8)
    titles = page.locator(".answer h3").all_inner_texts()
    assert titles == ["Cache 8 times smaller", "Whole cache"]
    shares = [int(re.search(r"(\d+)% of a whole", text)[1]) for text in page.locator(".answer .figures").all_inner_texts()]
    assert shares[0] < 60 < shares[1], shares
    ask(page, "And then?")
    assert page.locator(".answer").count() == 4


def test_without_a_chat_model_the_page_names_the_others(browser):
    server = Server(ROOT / "testdata" / "tiny-encoders" / "bert")
    opened = Opened(browser, server.url)
    playwright.expect(opened.page.locator("#model-error")).to_contain_text("no language model")
    assert "bert (embed)" in opened.page.inner_text("#model-error") and opened.page.is_disabled("#send") and opened.page.is_disabled("#text")
    opened.close()
    assert server.stop() == 0


def test_a_server_with_a_key_requires_it(browser, model):  # noqa: F811
    server = Server(model, "--api-key", "secret")
    opened = Opened(browser, server.url)
    page = opened.page
    playwright.expect(page.locator("#model-error")).to_contain_text("API key")
    assert page.is_disabled("#send")
    page.click("#open-settings")
    page.fill("#key", "secret")
    page.click("#settings button")
    playwright.expect(page.locator("#send")).to_be_enabled()
    set_options(page, tokens=4)
    ask(page, "Hello")
    assert page.is_visible("#meter") and not page.is_visible(".answer .error")
    assert page.evaluate("JSON.stringify(localStorage)").count("secret") == 0
    # Chromium logs the status 401.
    opened.errors.clear()
    opened.close()
    assert server.stop() == 0


def test_a_chat_model_is_chosen(browser):
    server = Server(TINY / "llama", TINY / "qwen3", ROOT / "testdata" / "tiny-encoders" / "bert", "--kv-format", "f32")
    recorded = Recorded(server.url, ["x"])
    opened = Opened(browser, recorded.url)
    page = opened.page
    assert page.locator("#model option").all_inner_texts() == ["llama", "qwen3"]
    page.select_option("#model", "qwen3")
    ask(page, "Hello")
    assert recorded.requests[-1]["model"] == "qwen3"
    playwright.expect(page.locator("#holders")).to_contain_text("bert")
    opened.close()
    recorded.stop()
    assert server.stop() == 0


def test_an_error_is_shown(opened):
    page = opened.page
    ask(page, "word " * 30_000)
    assert "token" in page.inner_text(".answer .error").lower()
    # Chromium logs the status 400.
    opened.errors.clear()


# --- recorded answers

def test_markdown_and_code_are_rendered(recorded):
    opened = recorded(MARKDOWN)
    page = opened.page
    ask(page, "How do I sort?")
    answer = page.locator(".answer .markdown")
    assert answer.locator("h4").inner_text() == "A sort" and answer.locator("ol > li").count() == 3 and answer.locator("ul > li").count() == 2
    assert answer.locator("table td").count() == 6 and answer.locator("strong").inner_text() == "stable"
    assert answer.locator("blockquote").inner_text() == "Measure before you choose."
    assert "tok/s · 100 + " in page.locator(".answer .figures").inner_text()
    link = answer.locator("a")
    assert link.get_attribute("rel") == "noopener noreferrer" and link.get_attribute("href").startswith("https://docs.python.org")
    assert answer.locator("pre .hljs-keyword").count() > 3 and answer.locator(".code header span").inner_text() == "python"
    answer.get_by_label("Copy the code").click()
    code = page.evaluate("navigator.clipboard.readText()")
    assert code == MARKDOWN.split("```python\n")[1].split("\n```")[0]
    # A growing text and the whole text have the same elements.
    playwright.expect(answer.get_by_label("Copy the code")).to_have_text("Copy")
    grown = answer.evaluate("x => x.innerHTML")
    opened.load()
    assert page.locator(".answer .markdown").evaluate("x => x.innerHTML") == grown


def test_a_growing_text_becomes_the_whole_text(recorded):
    cases = [MARKDOWN * 3, INJECTIONS, "- a\n\n- b\n\n  c\n\n- d\n\ntext [r] [r][]\n\n[r]: https://example.org\n\nend\n\nmore\n\nlast",
             "```\nopen\n\nfence\n\nwithout an end", "# a\nb\n===\n\n\n\nc\r\nd\r\n\r\ne", "a | b\n-|-\n1 | 2\n\n1. x\n2. y\n\n3. z\n\n"]
    page = recorded("x").page
    grown, whole = page.evaluate(
        """async cases => {
            const app = document.querySelector("script[type=module]").src;
            const { MarkdownView } = await import(app.replace("app.js", "markdown.js"));
            const show = (text, steps) => {
                const root = document.createElement("div"), view = new MarkdownView(root);
                for (let i = 1; i <= steps; i++) view.grow(text.slice(0, text.length * i / steps));
                view.finish(text);
                return root.innerHTML;
            };
            const texts = cases.map(text => text.replace(/\\r\\n?/g, "\\n"));
            return [texts.map(text => show(text, 97)), texts.map(text => show(text, 0))];
        }""", cases)
    assert grown == whole


def test_injected_text_is_inert(recorded):
    opened = recorded((INJECTIONS, INJECTIONS))
    page = opened.page
    ask(page, INJECTIONS)
    page.fill("#text", "")
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".turn script, .turn img, .turn iframe, .turn svg, .turn form, .turn [style], .turn [onclick], .turn [onerror]").count() == 0
    hrefs = page.locator(".answer a").evaluate_all("links => links.map(link => link.href)")
    assert all(href.startswith("https://example.invalid/") for href in hrefs if href), hrefs
    assert "<script>window.hacked = 1</script>" in page.locator(".answer .markdown").inner_text()
    opened.load()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("""() => { try { document.body.innerHTML = "<b>x</b>"; return "allowed"; } catch { return "refused"; } }""") == "refused"
    # Chromium logs the refusal.
    opened.errors.clear()


def test_regenerate_edit_stop_and_reasoning(recorded):
    opened = recorded(("I think.", "First answer"), "Second answer", "Third answer", "word " * 4000)
    page, server = opened.page, opened.server
    ask(page, "Question")
    thinking = page.locator(".thinking")
    assert not thinking.evaluate("x => x.open") and thinking.is_visible()
    thinking.locator("summary").click()
    playwright.expect(thinking.locator("div")).to_have_text("I think.")
    page.keyboard.press("Alt+r")
    done(page)
    playwright.expect(page.locator(".answer .markdown")).to_have_text("Second answer")
    page.press("#text", "ArrowUp")
    page.get_by_label("Edit the question").last.fill("Another question")
    page.keyboard.press("Enter")
    playwright.expect(page.locator(".answer .markdown")).to_have_text("Third answer", timeout=PATIENCE)
    done(page)
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["Another question"]
    page.fill("#text", "More")
    page.press("#text", "Enter")
    page.locator(".answer >> nth=1").get_by_text("word word").first.wait_for(timeout=PATIENCE)
    page.click("#stop")
    done(page)
    assert len(page.locator(".answer .markdown").nth(1).inner_text()) < 19_000
    assert [m["role"] for m in server.requests[-1]["messages"]] == ["user", "assistant", "user"]


def test_escape_stops_and_the_page_continues(recorded):
    page = recorded("word " * 4000, "Short").page
    page.fill("#text", "Go on for ever")
    page.press("#text", "Enter")
    playwright.expect(page.locator(".answer .markdown")).not_to_be_empty(timeout=PATIENCE)
    page.keyboard.press("Escape")
    done(page)
    playwright.expect(page.locator(".answer .figures")).to_contain_text("stopped")
    ask(page, "Short now")
    assert page.locator(".answer .markdown").nth(1).inner_text() == "Short"


def test_a_page_without_https_copies_too(recorded):
    """Browsers have no `navigator.clipboard` there."""
    page = recorded(MARKDOWN).page
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    ask(page, "How do I sort?")
    page.get_by_label("Copy the code").click()
    playwright.expect(page.get_by_label("Copy the code")).to_have_text("Copied")
    page.get_by_label("Copy the answer").click()
    page.focus("#text")
    page.keyboard.press("Control+v")
    assert page.input_value("#text").startswith("# A sort")


def test_the_conversation_follows_new_text_until_the_reader_scrolls(recorded):
    page = recorded("word " * 6000, interval=0.002).page
    page.fill("#text", "Question")
    page.press("#text", "Enter")
    log = "const log = document.getElementById('log');"
    page.wait_for_function(f"() => {{ {log} return log.scrollHeight > 2000 && log.scrollHeight - log.scrollTop - log.clientHeight < 5; }}", timeout=PATIENCE)
    height = page.locator("#log").evaluate("log => { log.scrollTop = 0; return log.scrollHeight; }")
    page.wait_for_function(f"height => {{ {log} return log.scrollHeight > height; }}", arg=height, timeout=PATIENCE)
    assert page.locator("#log").evaluate("log => log.scrollTop") == 0
    page.keyboard.press("Escape")
    done(page)


def test_chats_are_kept_renamed_exported_and_deleted(recorded, tmp_path):
    opened = recorded("An answer")
    page = opened.page
    ask(page, "The first chat")
    page.keyboard.press("Alt+n")
    ask(page, "The second chat")
    opened.load()
    playwright.expect(page.locator("#chats .open")).to_have_text(["The second chat", "The first chat"])
    assert page.locator(".question .text").inner_text() == "The second chat" and page.locator(".answer .markdown").inner_text() == "An answer"
    page.get_by_label("Open The first chat").click()
    assert page.locator(".question .text").inner_text() == "The first chat"
    page.get_by_label("Rename The first chat").click()
    page.get_by_label("Title of the chat").fill("Renamed")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#chats .open").last).to_have_text("Renamed")
    with page.expect_download() as download:
        page.get_by_label("Export Renamed").click()
    download.value.save_as(tmp_path / "chat.md")
    assert download.value.suggested_filename == "Renamed.md" and "An answer" in (tmp_path / "chat.md").read_text()
    page.get_by_label("Delete Renamed").click()
    playwright.expect(page.locator("#chats .open")).to_have_text(["The second chat"])
    opened.load()
    assert page.locator("#chats .open").all_inner_texts() == ["The second chat"]


def test_files_become_context(recorded):
    opened = recorded("Read.")
    page = opened.page
    page.set_input_files("#file", [{"name": "notes.txt", "mimeType": "text/plain", "buffer": "Färbe ```x```".encode()},
                                   {"name": "old.txt", "mimeType": "text/plain", "buffer": b"old"},
                                   {"name": "photo.png", "mimeType": "image/png", "buffer": b"\x89PNG\xff\xfe"}])
    playwright.expect(page.locator("#model-error")).to_contain_text("photo.png is not a text")
    page.get_by_label("Remove old.txt").click()
    page.evaluate("""() => {
        const data = new DataTransfer();
        data.items.add(new File(["dropped text"], "dropped.md"));
        document.getElementById("main").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }""")
    playwright.expect(page.locator("#files .chip")).to_have_count(2)
    ask(page, "Summarize")
    content = opened.server.requests[0]["messages"][0]["content"]
    assert content == ("File notes.txt:\n````\nFärbe ```x```\n````\n\nFile dropped.md:\n```\ndropped text\n```\n\nSummarize")
    assert page.locator(".question .chip").all_inner_texts() == ["notes.txt", "dropped.md"]


def test_settings_become_fields_of_requests(recorded):
    opened = recorded("x")
    page, requests = opened.page, opened.server.requests
    ask(page, "a")
    assert not [name for name in requests[-1] if name.startswith("kv")] and requests[-1]["model"] == "tiny-chat"
    set_options(page, shrink=4, system="Be brief.", temperature=0.3, tokens=99, think="off")
    ask(page, "b")
    sent = requests[-1]
    assert (sent["kv_shrink"], sent["temperature"], sent["max_tokens"], sent["enable_thinking"]) == (4, 0.3, 99, False)
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    set_options(page, shrink="custom")
    set_options(page, budget=30, policy="snapkv", format="int8", compare=True)
    ask(page, "c")
    assert {k: v for k, v in requests[-2].items() if k.startswith("kv")} == {"kv_budget": 0.3, "kv_policy": "snapkv", "kv_format": "int8"}
    assert {k: v for k, v in requests[-1].items() if k.startswith("kv")} == {"kv_policy": "full", "kv_format": "bf16"}
    opened.load()
    page.click("#open-settings")
    assert page.input_value("#budget") == "30" and page.input_value("#system") == "Be brief." and page.is_checked("#compare")


@pytest.mark.parametrize("scheme, width", [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)])
def test_every_view_is_accessible(recorded, scheme, width):
    size = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    opened = recorded(("First the facts, then the steps.", MARKDOWN), options=size, interval=0)
    page = opened.page
    assert violations(page) == []
    set_options(page, shrink=8, compare=width > 390)
    ask(page, "How do I sort a list, so that equal elements keep their order?")
    assert violations(page) == []
    page.locator("#log").evaluate("x => { x.scrollTop = 0; }")
    picture(page, f"page_{scheme}" if width > 390 else f"page_phone_{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page has no horizontal scroll bar"
    if width > 390:
        page.click("#open-settings")
        assert violations(page) == []
        page.keyboard.press("Escape")
        page.keyboard.press("Alt+/")
    else:
        page.click("#menu")
        playwright.expect(page.locator("#side")).to_be_visible()
    assert violations(page) == []
    backgrounds = {"light": "rgb(251, 250, 247)", "dark": "rgb(22, 23, 21)"}
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == backgrounds[scheme]


def test_the_theme_is_chosen(recorded):
    opened = recorded("x")
    set_options(opened.page, theme="dark")
    opened.load()
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 23, 21)"


def test_everything_is_reached_by_keys(recorded):
    page = recorded("x").page
    ask(page, "Question")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    assert {"new", "log", "text", "send", "attach", "open-settings", "open-shortcuts", "model", "Edit the question", "Copy the answer",
            "Regenerate the answer", "Open Question", "Delete Question", "Rename Question", "Export Question"} <= reached, reached
    page.keyboard.press("Alt+s")
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"shrink", "compare", "system", "temperature", "tokens", "think", "theme", "key"} <= reached, reached


def test_a_screen_reader_hears_the_answer_once(recorded):
    page = recorded(MARKDOWN).page
    page.evaluate("""() => { window.heard = []; new MutationObserver(() => heard.push(document.getElementById("status").textContent))
        .observe(document.getElementById("status"), { childList: true, characterData: true, subtree: true }); }""")
    ask(page, "Question")
    playwright.expect(page.locator("#status")).to_contain_text("Answer: # A sort")
    assert page.evaluate("heard.length") == 2
    assert page.locator("[aria-live]").count() == 1 and page.locator(".answer[aria-busy]").count() == 0


def test_no_task_is_long_while_an_answer_arrives(browser, recorded):
    """Tasks of the page's thread, in processor time: other load of the machine does not count."""
    opened = recorded(MARKDOWN * 16, interval=0.0004)
    browser.start_tracing(page=opened.page, categories=["toplevel", "devtools.timeline"])
    ask(opened.page, "Question")
    events = json.loads(browser.stop_tracing())["traceEvents"]
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name" and e["args"]["name"] == "CrRendererMain"}
    tasks = [e["tdur"] / 1000 for e in events if (e["pid"], e["tid"]) in threads and e["name"].endswith("RunTask") and "tdur" in e]
    assert len(tasks) > 100 and max(tasks) < 50, (len(tasks), sorted(tasks)[-5:])
