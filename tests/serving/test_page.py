"""The files of the page, and how they are served: no browser is needed for that."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.error import HTTPError

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from byheart.methods import defaults, find
from byheart.serving.http import page
from tests.serving.page_server import serving

FOLDER = Path(page.__file__).parent
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.js"))}
SERVED = ["/", *(f"/page/{path.name}" for path in sorted(FOLDER.iterdir()) if path.suffix in (".js", ".css", ".svg"))]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as (address, _):
        yield address


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        return error.code, dict(error.headers), error.read()


@pytest.mark.parametrize("path", SERVED)
def test_a_file_comes_with_the_policy_and_is_not_sent_twice(url: str, path: str) -> None:
    status, headers, body = get(url + path)
    assert (status, bool(body)) == (200, True)
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    again = get(url + path, **{"If-None-Match": headers["etag"]})
    assert (again[0], again[2]) == (304, b"")


@pytest.mark.parametrize("path", ["routes.py", "__init__.py", "../routes.py", "%2e%2e/jobs.py", "index.html", ""])
def test_nothing_else_of_the_disk_is_served(url: str, path: str) -> None:
    assert get(f"{url}/page/{path}")[0] == 404


class _Links(HTMLParser):
    """What an HTML page asks for, and what of it would be code."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.code: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        self.code += [f"{tag} {name}" for name, _ in attrs if name.startswith("on") or name == "style"]
        self.code += [tag] if tag == "style" or (tag == "script" and "src" not in dict(attrs)) else []


def test_the_page_asks_for_nothing_but_its_own_files_and_holds_no_inline_code() -> None:
    found = _Links()
    found.feed((FOLDER / "index.html").read_text(encoding="utf-8"))
    assert found.code == []
    assert set(found.links) <= set(SERVED)
    assert len(found.links) == 3
    for text in (*SCRIPTS.values(), (FOLDER / "style.css").read_text(encoding="utf-8")):
        assert not re.findall(r"https?://|url\(|@import|eval\(", text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_what_there_is_and_never_make_html_of_text(name: str) -> None:
    for names, path in re.findall(r'import \{([^}]+)\} from "\./([\w.]+)"', SCRIPTS[name]):
        for each in (part.split(" as ")[0].strip() for part in names.split(",")):
            assert re.search(rf"export (async )?(const|class|function\*?) {each}\b", SCRIPTS[path]), (path, each)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|DOMParser", SCRIPTS[name])
    assert len(SCRIPTS[name].splitlines()) <= 400


def test_elements_that_scripts_name_are_on_the_page() -> None:
    ids = set(re.findall(r'id="([\w-]+)"', (FOLDER / "index.html").read_text(encoding="utf-8")))
    named = {each for text in SCRIPTS.values() for each in re.findall(r'(?:byId|say)\("([\w-]+)"', text)}
    assert len(named) > 30
    assert named <= ids


def test_the_methods_that_are_offered_first_have_the_rates_that_are_asked_for() -> None:
    table = SCRIPTS["methods.js"].split("export function")[0]
    rates = re.findall(r'^  "?([\w-]+)"?: \{ option: "(\w+)"', table, re.MULTILINE)
    assert len(rates) == table.count("option:") > 3
    for name, option in rates:
        assert option in defaults(find(name))
