"""Clients that send slowly, read nothing or stay too long, and a server that stops."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from tests.serving.conftest import SETTINGS, Build, Site, chat
from tests.serving.live import serving

HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAuthorization: Bearer "
)


@pytest.fixture(scope="module")
def site(build: Build) -> Site:
    return build()


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    with serving(site.app, header_seconds=0.3, stall_seconds=0.3) as address:
        yield address


@contextmanager
def connected(address: str, buffer: int = 1 << 16) -> Iterator[socket.socket]:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.settimeout(20)
        parts = urlsplit(address)
        client.connect((parts.hostname, parts.port))
        yield client


def _answer(client: socket.socket) -> bytes:
    answer = b""
    while piece := client.recv(1 << 16):
        answer += piece
    return answer


def _is_closed(client: socket.socket) -> bool:
    """Whether the server ends the connection without a word."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHo"])
def test_who_sends_no_request_is_dropped(address: str, sent: bytes) -> None:
    with connected(address) as client:
        client.sendall(sent)
        assert _is_closed(client)


def test_a_body_that_does_not_come_is_not_waited_for(site: Site, address: str) -> None:
    with connected(address) as client:
        client.sendall(f"{HEAD}{site.alice}\r\nContent-Length: 100\r\n\r\n{{".encode())
        answer = _answer(client)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_too_slow" in answer


@pytest.mark.parametrize("late", [b"{", b"{....}"])
def test_who_sends_the_rest_of_a_body_after_its_answer_is_dropped(address: str, late: bytes) -> None:
    with connected(address) as client:
        client.sendall(f"{HEAD}no-key\r\nContent-Length: 6\r\n\r\n".encode())
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 401")
        client.sendall(late)
        client.settimeout(3)
        while not _is_closed(client):
            pass


def test_a_client_that_reads_nothing_is_dropped_and_its_answer_ends(site: Site, address: str) -> None:
    closed, question = site.engine.closed, json.dumps(chat("endless", stream=True, max_tokens=1 << 19))
    with connected(address, buffer=2048) as client:
        client.sendall(f"{HEAD}{site.alice}\r\nContent-Length: {len(question)}\r\n\r\n{question}".encode())
        for _ in range(500):
            if site.engine.closed > closed:
                break
            time.sleep(0.02)
    assert site.engine.closed == closed + 1
    assert site.engine.running == 0


def test_a_request_that_is_none_is_refused(address: str) -> None:
    with connected(address) as client:
        client.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        assert _answer(client).startswith(b"HTTP/1.1 400")


def test_a_server_that_stops_says_so_in_the_streams_that_it_cuts(build: Build) -> None:
    site = build()
    site.engine.delay = 0.02
    read: list[bytes] = []
    with serving(site.app) as address:
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
        body = json.dumps(chat("endless", stream=True, max_tokens=1 << 19))
        headers = {"authorization": f"Bearer {site.alice}", "content-type": "application/json", "host": "127.0.0.1"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        reader = threading.Thread(target=lambda: read.append(answer.read()))
        reader.start()
        time.sleep(0.1)
    reader.join(10)
    connection.close()
    assert b"server_stopped" in read[0]
    assert read[0].endswith(b"data: [DONE]\n\n")
    assert site.engine.running == 0
    assert SETTINGS.drain_seconds > 0
