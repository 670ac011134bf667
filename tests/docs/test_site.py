"""The documentation builds as a site without a warning, and leaves nothing in the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples import ROOT

pytest.importorskip("mkdocs_autorefs", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environ, capture_output=True, encoding="utf-8", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return out


def test_the_api_shows_names_with_their_text(site: Path) -> None:
    page = (site / "reference" / "api" / "session.html").read_text(encoding="utf-8")
    assert 'id="byheart.session.Session.write"' in page
    assert "Put <code>text</code> into the memory" in page
    assert 'id="byheart.session.Session._absorb"' not in page


def test_the_changelog_is_a_page(site: Path) -> None:
    assert "[0.2.0]" in (site / "reference" / "changelog.html").read_text(encoding="utf-8")


def test_no_page_asks_another_server(site: Path) -> None:
    pages = [page.read_text(encoding="utf-8") for page in site.rglob("*.html")]
    assert len(pages) > 30
    assert not any('src="http' in page or "fonts.googleapis" in page for page in pages)


def test_a_built_site_is_not_committed() -> None:
    assert "/site/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
