"""The lines for nginx in docs/how-to/deploy.md, in a real nginx before a server."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from byheart.serving.http.settings import LOOPBACK, Settings
from tests.samples import ROOT
from tests.serving.conftest import Build, chat
from tests.serving.live import serving

NGINX = shutil.which("nginx")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NGINX, reason="there is no nginx on the path")]
NAME, WORDS = "memories.example.org", 20
_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def _configure(folder: Path, server: str, port: int) -> Path:
    """The file of the page, with these addresses and without TLS."""
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    lines = lines.replace("10.0.0.1:8321", server).replace("    server 10.0.0.2:8321;\n", "")
    lines = lines.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};")
    folders = " ".join(f"{name}_temp_path {folder / name};" for name in _FOLDERS)
    top = f"pid {folder / 'pid'}; error_log {folder / 'errors'}; daemon off; events {{}}"
    path = folder / "nginx.conf"
    path.write_text(f"{top} http {{ access_log off; {folders}\n{lines} }}\n", encoding="utf-8")
    return path


@pytest.fixture
def proxy(build: Build, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """Before: nothing. Inside: the port of nginx before a server whose words take time, and a key. After: both end."""
    site = build(Settings(hosts=(*LOOPBACK, NAME)))
    site.engine.delay = 0.02
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with serving(site.app) as address:
        path = _configure(tmp_path, urlsplit(address).netloc, port)
        with subprocess.Popen([str(NGINX), "-c", str(path)]) as nginx:
            try:
                while not (tmp_path / "pid").exists() and nginx.poll() is None:
                    time.sleep(0.01)
                yield port, site.alice
            finally:
                nginx.terminate()


def test_streams_pass_word_by_word_and_metrics_do_not(proxy: tuple[int, str]) -> None:
    port, key = proxy
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"host": NAME, "authorization": f"Bearer {key}", "content-type": "application/json"}
    body = chat("endless", stream=True, max_tokens=WORDS)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    times = [time.monotonic() for line in iter(answer.readline, b"") if line.startswith(b"data")]
    assert times[-1] - times[0] > 0.02 * WORDS / 2
    connection.request("GET", "/metrics", headers=headers)
    assert connection.getresponse().status == 403
