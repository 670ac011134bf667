"""Takes the pictures of the page that are in its how-to guide: ``python -m tests.serving.screenshots FOLDER``."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from tests.serving.browser import ENTER, Browser, browsing
from tests.serving.page_server import KEY, Canned, serving

DESK, PHONE = (1280, 800), (390, 844)
_COMPARE = """
const field = document.querySelector('#compare');
field.value = 'without';
field.dispatchEvent(new Event('change'));
"""
_IDLE = "document.querySelector('#stop').hidden && document.querySelectorAll('.answer').length === arguments[0]"


def fill(canned: Canned) -> None:
    """Three memories, made up."""
    for name, sources in (("recipes", ["bread.txt"]), ("port", ["harbour.txt"]), ("ship", ["log.txt", "crew.txt"])):
        key = canned.create({"name": name, "options": {"times": 30}})["id"]
        for number, source in enumerate(sources):
            canned.write(key, source, f"On Monday we sailed with {name}. " * (400 + 300 * number))


def ask(browser: Browser, canned: Canned, question: str, answer: str, answers: int) -> None:
    canned.answer = answer
    browser.type("#question", question + ENTER)
    browser.wait(_IDLE, answers)


def main(folder: Path) -> None:
    """Four pictures: a desk and a phone, light and dark."""

    def take(name: str, size: tuple[int, int], *, dark: bool = False) -> None:
        browser.device(*size, dark=dark)
        browser.run("document.activeElement.blur()")
        # Few colours are enough for what is nearly all text, and make the files small.
        picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB").quantize(128)
        picture.save(folder / f"{name}.png", optimize=True)

    with serving() as (url, canned), browsing() as browser:
        fill(canned)
        browser.device(*DESK)
        browser.open(f"{url}/page/icon.svg")
        browser.run("sessionStorage.setItem('byheart-key', arguments[0])", KEY)
        browser.open(url)
        browser.wait_for("ship", "#memory-list")
        browser.click("#memory-list button")
        ask(browser, canned, "What is the ship's cat called?", "The ship's cat is called Muck.", 1)
        ask(browser, canned, "Where does it sleep?", "It sleeps in the engine room, on the warm side.", 2)
        take("desk", DESK)
        take("phone-dark", PHONE, dark=True)
        browser.click(".views [data-view=memory]")
        take("phone", PHONE)
        browser.device(*DESK)
        browser.run(_COMPARE)
        ask(browser, canned, "What is the ship's cat called?", "The ship's cat is called Muck.", 2)
        take("desk-dark", DESK, dark=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
