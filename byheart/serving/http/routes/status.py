"""/health, /ready, /metrics and /openapi.json: what machines ask a server about itself."""

from __future__ import annotations

from starlette.responses import Response

from byheart.provenance import versions
from byheart.serving.http.call import Call, in_thread
from byheart.serving.http.metrics import CONTENT_TYPE
from byheart.serving.http.wire.encoding import json_response


async def get_health(call: Call) -> Response:
    """Whether the process answers."""
    return json_response({"status": "ok", "version": versions()["byheart"]})


async def get_ready(call: Call) -> Response:
    """Whether it can be asked: the store is there. Raises UnavailableError."""
    await in_thread(call.server.memories.check)
    return json_response({"status": "ready"})


async def get_metrics(call: Call) -> Response:
    """What Prometheus reads."""
    return Response(call.server.metrics.render(), media_type=CONTENT_TYPE)
