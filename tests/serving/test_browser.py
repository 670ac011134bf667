"""The page in a real Chromium, against a server with canned answers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from tests.serving.browser import CHROMIUM, DRIVER, ENTER, ESCAPE, TAB, Browser, browsing
from tests.serving.page_server import KEY, Canned, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium, or no chromedriver, on the path"),
]
_DROP = """
const carried = new DataTransfer();
carried.items.add(new File([arguments[1]], arguments[0]));
for (const kind of ['dragover', 'drop']) document.body.dispatchEvent(
  new DragEvent(kind, {dataTransfer: carried, bubbles: true, cancelable: true}));
"""
_CHOOSE = """
const field = document.querySelector(arguments[0]);
field.value = arguments[1];
field.dispatchEvent(new Event('change'));
"""
_FOCUS = """
const {id, localName, innerText} = document.activeElement;
return [id || (localName === 'body' ? localName : innerText), getComputedStyle(document.activeElement).outlineStyle];
"""
_READ = "[...document.querySelectorAll('.answer .hint')].filter((note) => note.innerText.includes('read')).length"
_SMALL = """
return [...document.querySelectorAll('button')].filter((each) => each.checkVisibility() && each.offsetHeight < 32).length
"""
TEXT = "The ship's cat is called Muck. It sleeps in the engine room."


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Canned]]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def canned(server: tuple[str, Canned]) -> Canned:
    """The server with nothing in it but a memory called ship."""
    held = server[1]
    held.__init__()  # type: ignore[misc]
    held.write(held.create({"name": "ship", "options": {"times": 30}})["id"], "log.txt", TEXT)
    return held


@pytest.fixture
def browser(server: tuple[str, Canned], window: Browser, canned: Canned) -> Iterator[Browser]:
    """The page, opened with the key. Afterwards: no script has failed, and the policy had nothing to stop."""
    window.device(1280, 800)
    window.open(f"{server[0]}/page/icon.svg")
    window.run("sessionStorage.setItem('byheart-key', arguments[0])", KEY)
    window.open(server[0])
    window.wait_for("ship", "#memory-list")
    yield window
    assert [line for line in window.complaints() if "the server responded with a status of" not in line] == []


def choose(browser: Browser, css: str, value: str) -> None:
    browser.run(_CHOOSE, css, value)


def make_memory(browser: Browser, name: str) -> None:
    browser.click("#new")
    browser.type("#make-name", name + ENTER)
    browser.wait_for(name, "#memory-title")


def ask(browser: Browser, question: str) -> None:
    browser.type("#question", question + ENTER)


def test_the_key_is_asked_for_and_stays_in_the_tab(server: tuple[str, Canned], window: Browser, canned: Canned) -> None:
    window.open(f"{server[0]}/page/icon.svg")
    window.run("sessionStorage.clear()")
    window.open(server[0])
    window.wait("!document.querySelector('#sign-in').hidden")
    assert window.run("return document.activeElement.id") == "key"
    window.type("#key", "not-a-key" + ENTER)
    window.wait_for("This key is not known. Enter the key that the server printed.", "#key-error")
    assert window.run("return sessionStorage.length") == 0
    window.run("document.querySelector('#key').value = ''")
    window.type("#key", KEY + ENTER)
    window.wait_for("ship", "#memory-list")
    kept = window.run("return [Object.values(sessionStorage), localStorage.length, document.cookie, location.href]")
    assert kept == [[KEY], 0, "", f"{server[0]}/"]
    window.click("#sign-out")
    window.wait("!document.querySelector('#sign-in').hidden && sessionStorage.length === 0")


def test_a_memory_is_made_with_a_method_and_a_rate(browser: Browser, canned: Canned) -> None:
    browser.click("#new")
    browser.type("#make-name", "ship")
    choose(browser, "#make-method", "compact")
    assert browser.run("return document.querySelector('#make-rate').value") == "30"
    choose(browser, "#make-rate", "12")
    browser.click("#make-others summary")
    browser.type("#make-options", "chunk_tokens=512\nname=x")
    browser.click("#make-form .primary")
    browser.wait_for("There is a memory 'ship' already; choose another name.", "#make-error")
    browser.type("#make-name", "-2" + ENTER)
    browser.wait_for("Nothing is written yet", "#turns")
    (made,) = [memory for memory in canned.memories.values() if memory["name"] == "ship-2"]
    assert (made["method"], made["options"]) == ("compact", {"times": 12, "chunk_tokens": 512, "name": "x"})


def test_texts_are_pasted_chosen_and_dropped(browser: Browser, canned: Canned, tmp_path: Path) -> None:
    make_memory(browser, "log")
    browser.type("#text", TEXT)
    browser.click("#add-form .primary")
    browser.wait("document.querySelector('#queue progress')?.value > 0")
    browser.wait_for("pasted text", "#writes")
    assert browser.run("return document.querySelector('#text').value") == ""
    for name, content in (("monday.txt", b"We sailed."), ("picture.png", b"\x89PNG\xff")):
        (tmp_path / name).write_bytes(content)
    browser.type("#files", f"{tmp_path / 'monday.txt'}\n{tmp_path / 'picture.png'}")
    browser.wait_for("It is not text in UTF-8. Save it as a text file, and add that.", "#queue")
    browser.run(_DROP, "tuesday.txt", "We saw a whale.")
    browser.wait_for("tuesday.txt", "#writes")
    assert canned.texts[1:] == [TEXT, "We sailed.", "We saw a whale."]
    assert "3 · write" in browser.text("#versions")


def test_a_text_that_is_refused_stays_and_is_sent_again_as_the_same(browser: Browser, canned: Canned) -> None:
    make_memory(browser, "log")
    text = f"refuse {uuid.uuid4()}"
    browser.type("#text", text)
    browser.click("#add-form .primary")
    browser.wait_for("The store does not answer. Try again.", "#queue")
    assert browser.run("return document.querySelector('#text').value") == text
    browser.click("#queue button")
    browser.wait_for("pasted text", "#writes")
    assert browser.run("return document.querySelector('#text').value") == ""
    assert (canned.texts[1:], len(canned.keys), len(set(canned.keys))) == ([text], 2, 1)


def test_an_answer_is_streamed_as_text_and_the_conversation_goes_on(browser: Browser, canned: Canned) -> None:
    browser.click("#memory-list button")
    ask(browser, "What is the cat called?")
    browser.wait_for("19 tokens; 2,024 tokens read, 2,000 of them from the memory", "#turns")
    assert "and <b>sleeps</b> in" in browser.text("#turns")
    browser.click("#remember")
    ask(browser, "And where does it sleep?")
    browser.wait("document.querySelectorAll('.turn').length === 2 && !document.querySelector('#stop:not([hidden])')")
    first, second = canned.asked
    assert (first["model"], first["memory"], first["stream"]) == ("smollm2", next(iter(canned.memories)), True)
    assert second["memory"] == {"id": first["memory"], "write": True}
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    browser.click("#new-chat")
    browser.wait_for("The text is not read again", "#turns")


def test_escape_stops_an_answer_and_the_server_hears_of_it(browser: Browser, canned: Canned) -> None:
    browser.click("#memory-list button")
    ask(browser, "Tell me slowly: slow")
    browser.wait_for("Muck", "#turns")
    browser.press(ESCAPE)
    browser.wait_for("Stopped.", "#turns")
    browser.wait("document.querySelector('#stop').hidden")
    while not canned.hung_up:
        browser.wait("true")
    assert "Muck" in browser.text("#turns")


@pytest.mark.parametrize(
    ("question", "says"),
    [("busy?", "Too many questions wait. Try again in 2 s."), ("break?", "The engine was stopped.")],
)
def test_a_question_that_fails_is_not_lost(browser: Browser, canned: Canned, question: str, says: str) -> None:
    browser.click("#memory-list button")
    ask(browser, question)
    browser.wait_for(says, "#chat")
    browser.wait("document.querySelector('#stop').hidden")
    kept = browser.run("return document.querySelector('#question').value")
    assert kept == question if question == "busy?" else question in browser.text("#turns")


def test_two_memories_answer_side_by_side(browser: Browser, canned: Canned) -> None:
    browser.click("#memory-list button")
    make_memory(browser, "port")
    canned.write(list(canned.memories)[-1], "port.txt", "The port's cat is called Ahab.")
    browser.run("location.reload()")
    browser.wait("document.querySelector('#compare')?.options.length === 3")
    choose(browser, "#compare", next(iter(canned.memories)))
    ask(browser, "What is the cat called?")
    browser.wait(f"{_READ} === 2")
    left, right = browser.run("return [...document.querySelectorAll('.answer')].map((e) => e.innerText)")
    assert left.startswith("port\n\nFrom port:")
    assert right.startswith("ship\n\nFrom ship:")
    sides = browser.run("return [...document.querySelectorAll('.answer')].map((e) => e.getBoundingClientRect().top)")
    assert sides[0] == sides[1]
    choose(browser, "#compare", "without")
    ask(browser, "What is the cat called?")
    browser.wait_for("From no memory", "#turns")


def test_a_memory_is_seen_forked_renamed_restored_and_forgotten(browser: Browser, canned: Canned) -> None:
    key = next(iter(canned.memories))
    canned.write(key, "more.txt", "A second text.")
    browser.run("location.reload()")
    browser.wait_for("ship", "#memory-list")
    browser.click("#memory-list button")
    browser.wait_for("more.txt", "#writes")
    facts = browser.text("#facts")
    assert "18 tokens, 74 characters" in facts
    assert "13.9 kB, 770 bytes per token" in facts
    assert "3.3 % of the full text's 415 kB" in facts
    assert "compact, times=30" in facts
    browser.click("[aria-label='Restore version 1']")
    browser.wait_for("3 · restore", "#versions")
    browser.click("#fork")
    browser.press(ENTER)
    browser.wait_for("ship, version 3", "#facts")
    browser.click("#rename")
    browser.type("#ask-name", "boat" + ENTER)
    browser.wait_for("boat", "#memory-title")
    browser.click("#forget")
    assert browser.run("return document.activeElement.id") == "ask-cancel"
    browser.press(ESCAPE)
    assert len(canned.memories) == 2
    browser.click("#forget")
    browser.click("#ask-do")
    browser.wait_for("Choose a memory to see what it holds.", "#memory")
    assert list(canned.memories) == [key]


def test_names_are_never_html(browser: Browser, canned: Canned) -> None:
    hostile = "<img src=x onerror=document.title='taken'>"
    key = canned.create({"name": hostile})["id"]
    canned.write(key, hostile, "text")
    browser.run("location.reload()")
    browser.wait_for(hostile, "#memory-list")
    browser.click("#memory-list button")
    browser.wait_for(hostile, "#writes")
    assert browser.run("return [document.title, document.images.length]") == ["byheart", 0]


def test_all_is_reached_by_keyboard_with_the_focus_seen(browser: Browser) -> None:
    browser.click("#memory-list button")
    browser.wait_for("log.txt", "#writes")
    browser.run("document.activeElement.blur(); document.querySelector('#sign-out').focus()")
    reached = []
    for _ in range(30):
        browser.press(TAB)
        name, outline = browser.run(_FOCUS)
        reached.append(name)
        assert outline == "solid" or name == "body"
    wanted = {"new", "compare", "turns", "question", "send", "remember", "text", "choose-files", "forget", "Fork"}
    assert wanted <= set(reached)


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_one_part_at_a_time_without_scrolling_sideways(browser: Browser, dark: bool) -> None:
    browser.device(360, 640, dark=dark)
    browser.click("#memory-list button")
    for view, css in (("memory", "#facts"), ("chat", "#question"), ("memories", "#memory-list")):
        browser.click(f".views [data-view={view}]")
        assert browser.run("return document.querySelector(arguments[0]).checkVisibility()", css)
        assert browser.run("return document.documentElement.scrollWidth") == 360
        assert browser.run(_SMALL) == 0
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark
