"""KV events over HTTP: one stream of server-sent events per subscriber (WHATWG HTML, section 9.2)."""

from typing import Final

from aiohttp import web

from .. import limits
from ..clients import wire
from .caller import Caller
from .service import Service

__all__ = ["EVENTS_TYPE", "stream_events"]

EVENTS_TYPE: Final = "text/event-stream"
_LAST_EVENT_ID: Final = "Last-Event-ID"
_HEARTBEAT: Final = b": alive\n\n"


async def stream_events(service: Service, request: web.Request, caller: Caller) -> web.StreamResponse:
    """Write the caller's events until the client goes or the daemon drains.

    Events are numbered from 1 for each stream and none is kept, so one that a client resumes begins with a loss.
    A client that does not read holds up nobody: its queue fills, and it is told how much it has lost.
    """
    with service.subscribing(caller, resumed=_LAST_EVENT_ID in request.headers) as subscription:
        response = web.StreamResponse(headers={"Cache-Control": "no-store"})
        response.content_type = EVENTS_TYPE
        await response.prepare(request)
        await response.write(_HEARTBEAT)  # so that the head is on its way, and the client knows that it is subscribed
        while True:
            try:
                event = await subscription.next(seconds_max=limits.EVENT_HEARTBEAT_SECONDS)
            except StopAsyncIteration:
                return response
            if event is None:
                await response.write(_HEARTBEAT)
                continue
            head = f"event: {type(event).__name__}\nid: {subscription.number}\ndata: "
            await response.write(head.encode() + wire.encode(event) + b"\n\n")
