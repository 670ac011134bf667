"""The page in a real Chromium, against a server as it is, over a tiny model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from byheart import open_state
from byheart.model.backbone import Backbone
from tests.conftest import CAT
from tests.serving.browser import CHROMIUM, DRIVER, ENTER, Browser, browsing
from tests.serving.whole import serving_tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium, or no chromedriver, on the path"),
]
_METHOD = """
const field = document.querySelector('#make-method');
field.value = 'full';
field.dispatchEvent(new Event('change'));
"""
_ANSWERED = "document.querySelector('#stop').hidden && document.querySelectorAll('.answer .hint').length === 1"


@pytest.fixture
def backbone(tiny_folder: Path) -> Backbone:
    return Backbone.open(str(tiny_folder), dtype="float32")


@pytest.fixture
def browser(backbone: Backbone, tmp_path: Path) -> Iterator[Browser]:
    """The page of a server without memories, signed in. Afterwards: no script has failed."""
    with serving_tiny(backbone, tmp_path) as (address, key), browsing() as window:
        folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
        window.devtools("Browser.setDownloadBehavior", folder)
        window.device(1280, 800)
        window.open(address)
        window.wait("!document.querySelector('#sign-in').hidden")
        window.type("#key", key + ENTER)
        window.wait("!document.querySelector('#new').disabled && document.querySelector('#sign-in').hidden")
        yield window
        assert [line for line in window.complaints() if "401" not in line] == []


def test_a_memory_is_made_written_asked_restored_downloaded_and_forgotten(
    browser: Browser, backbone: Backbone, tmp_path: Path
) -> None:
    browser.click("#new")
    browser.wait("document.querySelectorAll('#make-method option').length > 3")
    browser.run(_METHOD)
    browser.type("#make-name", "ship" + ENTER)
    browser.wait_for("ship", "#memory-title")
    for number in (1, 2):
        browser.type("#text", CAT.strip())
        browser.click("#add-form .primary")
        browser.wait_for(f"{number} · write", "#versions")
    # The tiny model says nothing, at length.
    browser.run("document.querySelector('#max-tokens').value = 16")
    browser.type("#question", "What is the cat called?" + ENTER)
    browser.wait(_ANSWERED)
    assert "of them from the memory" in browser.text("#turns")
    browser.click("[aria-label='Restore version 1']")
    browser.wait_for("3 · restore", "#versions")
    assert browser.run("return document.activeElement.id") == "memory-title"
    browser.click("#download")
    file = tmp_path / "ship-3.safetensors"
    while not file.exists():
        browser.wait("true")
    assert [entry.source for entry in open_state(file, model=backbone).header.written] == ["pasted text"]
    browser.click("#remember")
    browser.type("#question", "Where is it?" + ENTER)
    browser.wait_for("4 · ", "#versions")
    browser.click("#forget")
    browser.click("#ask-do")
    browser.wait_for("Choose a memory to see what it holds.", "#memory")
    assert "ship" not in browser.text("#memory-list")
