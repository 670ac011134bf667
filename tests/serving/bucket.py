"""A bucket on loopback that speaks as much of S3 as objects need, and fails, hangs or is slow when it is told to."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

NAME = "bucket"


@dataclass
class Bucket:
    """What it holds, and how it behaves: a ``fault`` is a status that everything is answered with, or ``hang``.

    ``delay`` is seconds before each answer.
    """

    url: str = f"s3://{NAME}/objects"
    environment: dict[str, str] = field(default_factory=dict)
    """By which obstore finds it."""
    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    fault: int | str = 0
    delay: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        sent = {"content-length": str(len(body)), **{name.replace("_", "-"): text for name, text in headers.items()}}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self) -> tuple[str, bytes] | None:
        """The key and the body; None where it has failed as it was told to."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        time.sleep(self.bucket.delay)
        if self.bucket.fault == "hang":
            while self.bucket.fault == "hang":
                time.sleep(0.05)
            self.close_connection = True
            return None
        if self.bucket.fault:
            self._answer(int(self.bucket.fault), b"<Error><Code>InternalError</Code><Message>told to</Message></Error>")
            return None
        return unquote(urlsplit(self.path).path).removeprefix(f"/{NAME}").lstrip("/"), body

    def do_PUT(self) -> None:
        begun = self._begin()
        if begun is None:
            return
        key, body = begun
        upload = self._query("uploadId")
        if upload:
            self.bucket.uploads[upload][int(self._query("partNumber"))] = body
            return self._answer(200, etag=_tag(body))
        with self.bucket.lock:
            if self.headers.get("if-none-match") == "*" and key in self.bucket.objects:
                return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            self.bucket.objects[key] = (body, time.time())
        self._answer(200, etag=_tag(body))

    def do_GET(self) -> None:
        begun = self._begin()
        if begun is None:
            return
        key = begun[0]
        if not key:
            return self._list()
        found = self.bucket.objects.get(key)
        if found is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        self._answer(200, found[0], etag=_tag(found[0]), last_modified=formatdate(found[1], usegmt=True))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Deletions of several objects, and the begin and the end of an object that is sent in parts."""
        begun = self._begin()
        upload = self._query("uploadId")
        if begun is not None and upload:
            body = b"".join(part for _, part in sorted(self.bucket.uploads.pop(upload).items()))
            self.bucket.objects[begun[0]] = (body, time.time())
            self._answer(200, f"<R><ETag>{escape(_tag(body))}</ETag></R>".encode())
        elif begun is not None and "uploads" in urlsplit(self.path).query:
            upload = f"upload{time.time_ns()}"
            self.bucket.uploads[upload] = {}
            self._answer(200, f"<R><UploadId>{upload}</UploadId></R>".encode())
        elif begun is not None:
            keys = [part.partition("</Key>")[0] for part in begun[1].decode().split("<Key>")[1:]]
            for key in keys:
                self.bucket.objects.pop(key, None)
            gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

    def do_DELETE(self) -> None:
        begun = self._begin()
        if begun is not None:
            self.bucket.objects.pop(begun[0], None)
            self._answer(204)

    def _query(self, name: str) -> str:
        return parse_qs(urlsplit(self.path).query).get(name, [""])[0]

    def _list(self) -> None:
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size><ETag>{escape(_tag(body))}</ETag>"
            f"<LastModified>{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(at))}</LastModified></Contents>"
            for key, (body, at) in sorted(self.bucket.objects.items())
            if key.startswith(prefix)
        )
        self._answer(200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode())


def _tag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


@contextmanager
def bucket() -> Iterator[Bucket]:
    """Before: nothing. Inside: an empty bucket. After: nothing listens any more."""
    made = Bucket()
    handler = type("Handler", (_Handler,), {"bucket": made})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    made.environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.fault = 0
        server.shutdown()
        server.server_close()
        thread.join()
