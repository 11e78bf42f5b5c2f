"""The playground in headless Chromium, against the server that sends it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specplug.batching import BatchDecoder
from specplug.serving.keys import KeyRing, hash_key
from tests_support import browser
from tests_support.browser import CTRL, SHIFT, Page
from tests_support.serving import Held, Running, serving

pytestmark = pytest.mark.slow

PROMPT = "one two one two one two <i>three</i>"
DONE = "document.getElementById('run').textContent.startsWith('Run')"
BROKEN = "Failed to load resource"  # what Chromium itself writes of every refusal


@pytest.fixture(scope="module")
def decoder(tiny_bundles: dict[str, Path]) -> Iterator[BatchDecoder]:
    with BatchDecoder.from_bundle(
        tiny_bundles["fp32"], max_batch=2, drafter="draft", draft_tokens=3
    ) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def server(decoder: BatchDecoder) -> Iterator[Running]:
    with serving(decoder) as running:
        yield running


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    try:
        program = browser.program()
    except browser.MissingBrowserError as error:
        pytest.skip(f"no browser: {error}")
    with browser.browse(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(tab: Page, server: Running) -> Iterator[Page]:
    """The playground, ready; afterwards nothing has gone wrong or anywhere else."""
    tab.forget()
    tab.size(1180, 900)
    tab.open(server.url)
    tab.wait("document.getElementById('model').value === 'tiny'")
    yield tab
    assert tab.console == []
    assert all(request["url"].startswith((server.url, "data:")) for request in tab.requests)


def write(page: Page, prompt: str, max_tokens: int = 40) -> None:
    """Fill in the form as somebody without a mouse does."""
    for name, text in (("prompt", prompt), ("max_tokens", str(max_tokens))):
        page.tab_to(name)
        page.js("document.activeElement.select()")
        page.type(text)


def spans(page: Page, side: str) -> list[list[str]]:
    """Class and text of each token shown."""
    shown = f"[...document.querySelectorAll('#{side} .text span')]"
    return list(page.js(f"{shown}.map((span) => [span.className, span.textContent])"))


def counts(page: Page, side: str) -> list[int]:
    shown = f"[...document.querySelectorAll('#{side} .legend b')]"
    return list(page.js(f"{shown}.map((count) => Number(count.textContent))"))


def text(page: Page, selector: str) -> str:
    return str(page.js(f"document.querySelector({selector!r}).textContent"))


def alert(page: Page, selector: str) -> str:
    """The error there, once it shows."""
    page.wait(f"!document.querySelector({selector!r}).hidden")
    assert page.js(f"document.querySelector({selector!r}).role") == "alert"
    return text(page, selector)


def sent(page: Page) -> list[dict[str, Any]]:
    """The bodies of the questions asked."""
    return [json.loads(r["postData"]) for r in page.requests if "chat" in r["url"]]


def event(*tokens: tuple[int, str, str], reason: str | None = None) -> str:
    """A chunk of a stream."""
    fields = ("id", "text", "origin")
    choice = {
        "delta": {"content": "".join(token[1] for token in tokens)},
        "tokens": [dict(zip(fields, token, strict=True)) for token in tokens],
        "finish_reason": reason,
    }
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def stream(page: Page, *events: str) -> None:
    page.answer("/v1/chat/completions", "".join(events), Content_Type="text/event-stream")


def test_a_prompt_is_answered_with_and_without_speculation_by_keyboard(
    page: Page, server: Running
) -> None:
    assert page.js("document.activeElement.id") == "prompt"
    write(page, PROMPT)
    page.press("Enter", CTRL)
    page.wait(f"document.querySelectorAll('#with .text span').length > 0 && {DONE}")
    page.tab_to("speculation")
    page.press(" ")
    page.press("Enter", CTRL)
    page.wait("!document.getElementById('verdict').hidden")

    with_drafts, without = sent(page)
    assert (with_drafts.pop("speculation"), without.pop("speculation")) == (True, False)
    assert with_drafts == without
    drafted, plain = spans(page, "with"), spans(page, "without")
    body = without | {"stream": False}
    del body["stream_options"]
    answer = json.loads(server.send("POST", "/v1/chat/completions", body)[2])
    assert "".join(token for _, token in drafted) == answer["choices"][0]["message"]["content"]
    assert [token for _, token in drafted] == [token for _, token in plain]
    assert len(drafted) == answer["usage"]["completion_tokens"]

    origins = [origin for origin, _ in drafted]
    names = ("draft", "corrected", "bonus", "plain")
    assert set(origins) == set(names)
    assert counts(page, "with") == [origins.count(name) for name in names]
    assert counts(page, "without") == [0, 0, 0, len(plain)]
    assert text(page, "#same") == f"✓ Same text: all {len(plain)} tokens are equal"
    share = int(100 * origins.count("draft") / len(origins) + 0.5)
    assert text(page, "#with [data-stat=share]") == f"{share}%"
    assert text(page, "#without [data-stat=length]") == "1.00"
    assert float(text(page, "#with [data-stat=length]")) > 1
    for side in ("with", "without"):
        assert text(page, f"#{side} [data-stat=first]").endswith(" s")


def test_both_are_run_one_after_the_other(page: Page) -> None:
    write(page, PROMPT)
    page.press("Enter", CTRL | SHIFT)
    page.wait("!document.getElementById('verdict').hidden")
    assert [body["speculation"] for body in sent(page)] == [True, False]
    write(page, PROMPT, max_tokens=5)  # another question: the earlier answer does not compare
    page.press("Enter", CTRL)
    page.wait(f"document.querySelectorAll('#with .text span').length > 0 && {DONE}")
    assert spans(page, "without") == []
    assert page.js("document.getElementById('verdict').hidden")


def test_tokens_appear_as_they_come_and_escape_stops_them(
    page: Page, server: Running, decoder: BatchDecoder
) -> None:
    write(page, PROMPT, max_tokens=200)
    with Held(decoder, 0.05):
        page.press("Enter", CTRL)
        page.wait("document.querySelectorAll('#with .text span').length > 2")
        page.wait("Number(document.querySelector('#with [data-stat=speed]').textContent) > 0")
        assert text(page, "#run").startswith("Stop")
        assert text(page, "#status") == "Answering with speculation…"
        assert server.metric("num_requests_running") == 1
        page.press("Escape")
        page.wait("document.getElementById('status').textContent === 'Stopped'")
        server.wait_until_free()
    assert sum(counts(page, "with")) == len(spans(page, "with")) < 200
    assert page.js("document.querySelector('#with .error').hidden")


def test_settings_are_sent(page: Page) -> None:
    write(page, PROMPT, max_tokens=3)
    page.js("document.querySelector('details').open = true")
    for name, value in (
        ("temperature", "0.5"), ("seed", "7"), ("system", "be short"), ("prediction", "three"),
    ):  # fmt: skip
        page.tab_to(name)
        page.js("document.activeElement.select()")
        page.type(value)
    page.press("Enter", CTRL)
    page.wait(f"document.querySelectorAll('#with .text span').length > 0 && {DONE}")
    assert sent(page) == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "be short"},
                {"role": "user", "content": PROMPT},
            ],
            "max_tokens": 3,
            "temperature": 0.5,
            "seed": 7,
            "prediction": {"type": "content", "content": "three"},
            "stream": True,
            "stream_options": {"include_usage": True, "include_token_origins": True},
            "speculation": True,
        }
    ]


def test_an_error_of_the_server_is_shown(page: Page) -> None:
    write(page, "word " * 2000)
    page.press("Enter", CTRL)
    assert "context" in alert(page, "#with .error")
    assert text(page, "#status") == "Failed"
    assert [BROKEN in entry for entry in page.console] == [True]
    page.console.clear()
    write(page, PROMPT)
    page.press("Enter", CTRL)
    page.wait(f"document.querySelectorAll('#with .text span').length > 0 && {DONE}")
    assert page.js("document.querySelector('#with .error').hidden")


def test_a_full_server_says_when_to_try_again(page: Page) -> None:
    body = json.dumps({"error": {"message": "too many requests", "code": "rate_limit_exceeded"}})
    page.answer("/v1/chat/completions", body, status=429, Retry_After="3")
    page.press("Enter", CTRL)
    assert alert(page, "#with .error") == "too many requests Try again in 3 s."
    page.console.clear()


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ('data: {"error": {"message": "the engine failed"}}\n\n', "the engine failed"),
        ("", "The answer broke off: the connection was closed."),
    ],
)
def test_an_error_within_a_stream_is_shown_beside_what_came(
    page: Page, end: str, message: str
) -> None:
    stream(page, event((1, "so far", "plain")), end)
    page.press("Enter", CTRL)
    assert alert(page, "#with .error") == message
    assert spans(page, "with") == [["plain", "so far"]]
    assert text(page, "#with .note") == "1 tokens (broken off)"


def test_what_the_model_writes_stays_text(page: Page) -> None:
    bad = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>&lt;"
    stream(page, event((1, bad, "draft"), reason="stop"), "data: [DONE]\n\n")
    page.press("Enter", CTRL)
    page.wait("document.getElementById('status').textContent.includes('tokens in')")
    assert spans(page, "with") == [["draft", bad]]
    assert page.js("document.querySelectorAll('main img, main script').length") == 0
    assert page.js("document.title") == "specplug playground"


def test_other_text_is_not_passed_over(page: Page) -> None:
    end = "data: [DONE]\n\n"
    stream(page, event((1, "a", "plain"), (2, "b", "draft")), event(reason="stop"), end)
    page.press("Enter", CTRL)
    page.wait("document.getElementById('status').textContent.includes('tokens in')")
    page.tab_to("speculation")
    page.press(" ")
    stream(page, event((1, "a", "plain"), (3, "c", "plain")), event(reason="stop"), end)
    page.press("Enter", CTRL)
    page.wait("!document.getElementById('verdict').hidden")
    assert text(page, "#same") == "✗ Not the same text: it differs from token 2 on"


def test_a_key_is_sent_and_not_kept(tab: Page, tiny_bundle: Path) -> None:
    keys = KeyRing({"me": hash_key("sk-very-secret")})
    with (
        BatchDecoder.from_bundle(tiny_bundle, drafter="none") as decoder,
        serving(decoder, model_name="locked", keys=keys) as server,
    ):
        tab.forget()
        tab.open(server.url)
        assert "key" in alert(tab, "#error").lower()
        tab.tab_to("key")
        tab.type("sk-very-secret")
        tab.press("Tab")
        tab.wait("document.getElementById('model').value === 'locked'")
        assert tab.js("document.getElementById('error').hidden")
        write(tab, PROMPT)
        tab.press("Enter", CTRL)
        tab.wait(f"document.querySelectorAll('#with .text span').length > 0 && {DONE}")
        assert tab.js("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert tab.requests[-1]["headers"]["Authorization"] == "Bearer sk-very-secret"
        tab.open(server.url)
        assert "key" in alert(tab, "#error").lower()
        assert tab.js("document.getElementById('key').value") == ""


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_by_everybody(page: Page, dark: bool) -> None:
    page.size(360, 700, dark=dark)
    write(page, PROMPT)
    page.press("Enter", CTRL | SHIFT)
    page.wait("!document.getElementById('verdict').hidden")
    assert page.js("document.documentElement.scrollWidth") == 360
    styles = page.js(
        "[...document.querySelectorAll('#with .legend span')].map((span) => {"
        "const style = getComputedStyle(span);"
        "return style.textDecorationLine === 'none' ? 'none' : style.textDecorationStyle; })"
    )
    assert styles == ["solid", "wavy", "double", "none"]  # told apart without colours, too
    assert page.js(CONTRAST) == []
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    assert "switch" in [node["role"]["value"] for node in nodes]


CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !element.checkVisibility() || element.closest("[aria-disabled=true]")) continue;
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.unshift(getComputedStyle(e).backgroundColor);
    const back = over(["white", ...layers]);
    const ink = over([...layers, getComputedStyle(element).color]);
    const [low, high] = [light(back), light(ink)].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) poor.push(`${element.tagName} ${element.textContent}`);
  }
  return poor;
})()"""


def test_nothing_but_the_page_may_run(server: Running) -> None:
    policy = server.send("GET", "/")[1]["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
