"""HTTP endpoints beside vLLM's own: is this server armed, and which vectors and plans may requests name.

    GET    /steerfast/health              armed, version, mode, workers, capacity
    GET    /steerfast/vectors             names, hidden size, layers
    POST   /steerfast/vectors/{name}      a vector in its JSON form
    DELETE /steerfast/vectors/{name}
    GET    /steerfast/plans               names, digests
    POST   /steerfast/plans/{name}        a plan in the plan schema; vectors by name, or by value
    DELETE /steerfast/plans/{name}

All but health want ``Authorization: Bearer <STEERFAST_ADMIN_TOKEN>`` and are off where no token is set. vLLM loads
this only where VLLM_PLUGINS names it: ``VLLM_PLUGINS=steerfast,steerfast_http``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from steerfast import __version__
from steerfast.io.plans import plan_from_json
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector
from steerfast.serving import metrics
from steerfast.serving.catalogue import Catalogue, valid_name
from steerfast.serving.reader import PlanReader, read_vector
from steerfast.serving.vllm.arming import STATUS, merged
from steerfast.serving.vllm.front import Front, fronts

logger = logging.getLogger("steerfast")
_POLL_SECONDS = 10.0
_BODY_BYTES = 64 * 2**20


class Endpoints:
    """An EndpointPlugin of vLLM."""

    name = "steerfast_http"
    required_tasks: Any = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """The routes."""
        app.get("/steerfast/health")(_health)
        for kind, many in ((SteeringVector, "vectors"), (Plan, "plans")):
            app.get(f"/steerfast/{many}")(_admin(kind, _list))
            app.post(f"/steerfast/{many}/{{name}}")(_admin(kind, _put))
            app.delete(f"/steerfast/{many}/{{name}}")(_admin(kind, _remove))

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Remember the engine, and look after it now and then for the metrics."""
        state.steerfast_engine = engine_client
        state.steerfast_servers = int(getattr(args, "api_server_count", None) or 1)
        if engine_client is not None:
            state.steerfast_poll = asyncio.create_task(_poll(engine_client))


async def _status(engine: Any) -> dict[str, Any] | None:
    status = merged(await engine.collective_rpc(STATUS))
    if status is not None:
        metrics.show(status)
    return status


async def _poll(engine: Any) -> None:
    """The gauges follow an engine that runs; one that has ended has nothing to say."""
    with contextlib.suppress(Exception):
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            await _status(engine)


async def _health(request: Request) -> JSONResponse:
    engine = getattr(request.app.state, "steerfast_engine", None)
    front = _front()
    reason = front.reason if front is not None else "this process makes no requests"
    status = None
    if engine is not None and reason is None:
        try:
            status = await _status(engine)
            reason = None if status else "a worker is not armed"
        except Exception as error:
            reason = f"the engine does not answer: {error!r}"
    if status is None:
        return JSONResponse({"armed": False, "version": __version__, "reason": reason}, 503)
    return JSONResponse(status)


def _admin(kind: type, act: Callable[..., Awaitable[JSONResponse]]) -> Callable[..., Any]:
    """An endpoint for those who know the token."""

    async def endpoint(request: Request, name: str = "") -> JSONResponse:
        front = _front()
        if front is None or front.reason is not None:
            return _error(503, "this engine cannot steer", front.reason if front else None)
        token = front.reader.settings.admin_token
        if not token:
            return _error(404, "off on this server: it has no STEERFAST_ADMIN_TOKEN")
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return _error(401, "wants the header Authorization: Bearer <token>")
        try:
            return await act(request, front, kind, name)
        except KeyError:
            return _error(404, f"there is no {name!r}")
        except (ValueError, TypeError) as error:
            return _error(400, str(error))

    return endpoint


async def _list(request: Request, front: Front, kind: type, name: str) -> JSONResponse:
    catalogue = front.reader.catalogue
    await front.aside.run(0, catalogue.refresh)
    if kind is Plan:
        return JSONResponse(
            {key: {"digest": plan.digest} for key, plan in catalogue.plans().items()}
        )
    about = {
        key: {"hidden_size": one.hidden_size, "layers": list(one.layers), "digest": one.digest}
        for key, one in catalogue.vectors().items()
    }
    return JSONResponse(about)


async def _put(request: Request, front: Front, kind: type, name: str) -> JSONResponse:
    _check_shared(request, front.reader.catalogue)
    body = await _body(request)
    # Read and written beside the event loop, which serves everybody.
    digest = await front.aside.run(len(body), partial(_register, front.reader, kind, name, body))
    logger.info("steerfast: %s %r registered, digest %s", kind.__name__, name, digest[:12])
    return JSONResponse({"name": name, "digest": digest})


def _register(reader: PlanReader, kind: type, name: str, body: bytes) -> str:
    """Keep what a body holds, under a name; its digest."""
    valid_name(name)
    item: Plan | SteeringVector
    if kind is Plan:
        item = plan_from_json(body, reader.catalogue.vector)
        reader.check(item)
    else:
        item = read_vector(body, name)
        if item.hidden_size != reader.hidden_size:
            raise ValueError(
                f"vector {name!r} has hidden size {item.hidden_size}; this model has {reader.hidden_size}"
            )
    reader.catalogue.put(name, item)
    return item.digest


async def _remove(request: Request, front: Front, kind: type, name: str) -> JSONResponse:
    _check_shared(request, front.reader.catalogue)
    await front.aside.run(0, partial(front.reader.catalogue.remove, kind, name))
    logger.info("steerfast: %s %r removed", kind.__name__, name)
    return JSONResponse({"name": name})


def _check_shared(request: Request, catalogue: Catalogue) -> None:
    """What one of several front ends keeps in its memory the others would not know."""
    servers = getattr(request.app.state, "steerfast_servers", 1)
    if servers > 1 and catalogue.folder is None:
        raise ValueError(
            f"{servers} API servers share what is registered through a folder; start them with STEERFAST_VECTORS"
        )


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _BODY_BYTES:
            raise ValueError(f"the body has more than {_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _front() -> Front | None:
    """The one front end of this process."""
    found = fronts()
    return found[0] if found else None


def _error(code: int, message: str, reason: str | None = None) -> JSONResponse:
    text = f"{message}: {reason}" if reason else message
    text = text.encode("utf-8", "backslashreplace").decode()  # half a letter cannot be sent
    return JSONResponse({"error": {"message": text, "code": code}}, code)
