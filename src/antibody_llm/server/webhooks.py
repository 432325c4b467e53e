"""Events on their way to the customers' endpoints: signed, sent, and sent again.

    signature = "v1," + base64(HMAC-SHA256(key, "{id}.{timestamp}.{body}")), key = base64 after whsec_        (1)

Reference: Standard Webhooks 1.0 (github.com/standard-webhooks/standard-webhooks), "Signature scheme" and the retry
schedule of "Deliverability and reliability".
"""

import base64
import hmac
import ipaddress
import json
import logging
import secrets
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
from sqlalchemy import select

from .context import Context
from .database.tables import Delivery, Webhook
from .errors import ApiError
from .ids import new_id

log = logging.getLogger("antibody.server")

RETRY_SECONDS = (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
"""Pauses between attempts: three days in all."""
OLD_SECRET_SECONDS = 86400
AT_ONCE = 20
SENDING_SECONDS = 120
"""Seconds that a delivery belongs to the server that took it."""


def new_secret() -> str:
    """A signing secret of 192 random bits."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def signatures(event_id: str, timestamp: int, body: bytes, keys: list[str]) -> str:
    """Eq. (1) for each key, newest first, with a space between."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    made = []
    for key in keys:
        raw = base64.b64decode(key.removeprefix("whsec_"))
        made.append("v1," + base64.b64encode(hmac.digest(raw, signed, "sha256")).decode())
    return " ".join(made)


def check_url(url: str, *, insecure: bool) -> None:
    """Refuse a URL that is no public HTTPS address.

    Raises:
        ApiError: 400.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in (("https", "http") if insecure else ("https",)) or not host or parts.username is not None:
        raise ApiError(400, "url must be https://HOST/PATH, without a user name.", code="invalid_value", param="url")
    literal = _address(host)
    if not insecure and (host == "localhost" or (literal is not None and not literal.is_global)):
        message = f"url names {host}, which is a private address. Name a public host."
        raise ApiError(400, message, code="invalid_value", param="url")


def deliver(context: Context) -> int:
    """Send the events that are due, all at once; returns how many were tried."""
    sendings = _take(context)
    for sending, status in zip(sendings, _sent(context, sendings), strict=True):
        _record(context, sending, status)
    return len(sendings)


def event_body(event_id: str, kind: str, created_at: float, data: dict[str, Any]) -> bytes:
    """The event as it is sent: the receiver fetches the rest by the id in it."""
    body = {"id": event_id, "object": "event", "created_at": int(created_at), "type": kind, "data": data}
    return json.dumps(body, separators=(",", ":")).encode()


def send_sample(context: Context, hook: Webhook, kind: str) -> int | None:
    """Send a sample of an event, once; returns the endpoint's status, None where it cannot be reached."""
    event_id = new_id("evt_")
    with context.database.read() as session:
        now = context.database.now(session)
    sample = {"id": "ftjob-sample" if kind.startswith("fine_tuning") else "sample"}
    body = event_body(event_id, kind, now, sample)
    return _sent(context, [_Sending(0, event_id, hook.url, body, _keys(hook, now))])[0]


@dataclass(frozen=True)
class _Sending:
    seq: int
    event_id: str
    url: str
    body: bytes
    keys: list[str]


def _take(context: Context) -> list[_Sending]:
    """Deliveries that are due, which no other server takes for two minutes."""
    taken = []
    with context.database.write() as session:
        now = context.database.now(session)
        due = select(Delivery).where(Delivery.due_at <= now).order_by(Delivery.due_at).limit(AT_ONCE)
        for row in session.scalars(due.with_for_update(skip_locked=True)).all():
            hook = session.scalars(select(Webhook).where(Webhook.id == row.webhook_id)).first()
            if hook is None or hook.deleted_at is not None:
                row.due_at = None
                continue
            row.due_at, row.attempts = now + SENDING_SECONDS, row.attempts + 1
            body = event_body(row.event_id, row.type, row.created_at, row.data)
            taken.append(_Sending(row.seq, row.event_id, hook.url, body, _keys(hook, now)))
    return taken


def _record(context: Context, sending: _Sending, status: int | None) -> None:
    fine = status is not None and 200 <= status < 300
    context.metrics.deliveries.labels("delivered" if fine else "failed").inc()
    with context.database.write() as session:
        now = context.database.now(session)
        row = session.get(Delivery, sending.seq)
        assert row is not None
        row.last_status = status
        if fine:
            row.delivered_at, row.due_at = now, None
        elif row.attempts > len(RETRY_SECONDS) or status == 410:  # Gone: the endpoint wants no more
            row.due_at = None
        else:
            row.due_at = now + RETRY_SECONDS[row.attempts - 1]


def _keys(hook: Webhook, now: float) -> list[str]:
    old = [hook.old_secret] if hook.old_secret and (hook.old_secret_until or 0) > now else []
    return [hook.secret, *old]


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _sent(context: Context, sendings: list[_Sending]) -> list[int | None]:
    """The endpoints' statuses; None where one cannot be reached in time."""
    if not sendings:
        return []
    with context.database.read() as session:
        timestamp = int(context.database.now(session))
    policy = context.settings.webhooks
    found: list[int | None] = [None] * len(sendings)

    async def send(index: int, sending: _Sending) -> None:
        headers = {
            "content-type": "application/json",
            "user-agent": "antibody-webhooks/1.0",
            "webhook-id": sending.event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(sending.event_id, timestamp, sending.body, sending.keys),
        }
        post = context.post or (_post_anywhere if policy.allow_insecure else _post)
        try:
            with anyio.fail_after(policy.timeout):  # in all: an endpoint that answers a byte at a time ends too
                found[index] = await post(sending.url, sending.body, headers)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            entry = {"event": "webhook_failed", "id": sending.event_id, "why": type(error).__name__}
            log.warning(json.dumps(entry))

    async def send_all() -> None:
        async with anyio.create_task_group() as tasks:
            for index, sending in enumerate(sendings):
                tasks.start_soon(send, index, sending)

    anyio.run(send_all)
    return found


async def _post(url: str, content: bytes, headers: dict[str, str]) -> int:
    """Post to a public address of the URL's host: the one that was looked at is the one that is connected to."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 443
    found = {str(entry[4][0]) for entry in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    addresses = [address for address in map(ipaddress.ip_address, sorted(found)) if address.is_global]
    if len(addresses) != len(found) or not addresses:
        raise ValueError("a private address")
    address = f"[{addresses[0]}]" if addresses[0].version == 6 else str(addresses[0])
    there = f"https://{address}:{port}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")
    name = host if port == 443 else f"{host}:{port}"
    async with httpx2.AsyncClient(timeout=None, follow_redirects=False, trust_env=False) as client:
        request = client.build_request("POST", there, content=content, headers={**headers, "host": name})
        request.extensions["sni_hostname"] = host
        return await _status(client, request)


async def _post_anywhere(url: str, content: bytes, headers: dict[str, str]) -> int:
    async with httpx2.AsyncClient(timeout=None, follow_redirects=False, trust_env=False) as client:
        return await _status(client, client.build_request("POST", url, content=content, headers=headers))


async def _status(client: httpx2.AsyncClient, request: httpx2.Request) -> int:
    response = await client.send(request, stream=True)  # the answer's body is of no interest, however long
    await response.aclose()
    return int(response.status_code)


def living_hooks(project_id: str) -> Any:
    """The endpoints of a project."""
    return select(Webhook).where(Webhook.project_id == project_id, Webhook.deleted_at.is_(None))
