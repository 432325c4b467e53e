"""Who asks: keys, of which only digests are kept, and what each may do and how often."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from .context import context_of
from .database.engine import Database
from .database.tables import Audit, Key, Organization, Project
from .errors import ApiError
from .ids import new_id

Scope = Literal["customer", "operator"]
MAX_COUNTERS = 100_000


@dataclass(frozen=True)
class Principal:
    """Who asks, and for which project."""

    key_id: str
    scope: str
    organization_id: str
    organization: str
    """Its name."""
    project_id: str

    @property
    def is_operator(self) -> bool:
        """Whether the key may see and decide what only the operator may."""
        return self.scope == "operator"


def digest(secret: str) -> str:
    """What is kept of a key."""
    return sha256(secret.encode()).hexdigest()


def new_key(
    session: Session,
    project_id: str,
    *,
    scope: Scope,
    name: str,
    actor: str,
    now: float,
    expires_at: float | None = None,
) -> tuple[Key, str]:
    """Add a key; returns its row and the secret, which nobody sees again."""
    secret = f"sk-{'antibody' if scope == 'customer' else 'operator'}-{secrets.token_urlsafe(32)}"
    row = Key(
        id=new_id("key_"),
        digest=digest(secret),
        hint=secret[-4:],
        name=name,
        scope=scope,
        project_id=project_id,
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    data = {"name": name, "scope": scope}
    session.add(
        Audit(created_at=now, actor=actor, action="key.created", subject=row.id, project_id=project_id, data=data)
    )
    return row, secret


def operator_keys(now: float) -> Any:
    """The keys with which an operator can sign in now."""
    lasting = Key.expires_at.is_(None) | (Key.expires_at > now)
    return select(Key).where(Key.scope == "operator", Key.revoked_at.is_(None), lasting)


def first_key(database: Database, organization: str) -> str | None:
    """An operator's key for a server that has none, with an organisation and a project; None where there is one."""
    with database.write() as session:
        now = database.now(session)
        if session.scalars(operator_keys(now).limit(1)).first():
            return None
        row = session.scalars(select(Organization).where(Organization.name == organization)).first()
        if row is None:
            row = Organization(id=new_id("org-"), name=organization, created_at=now)
            session.add(row)
            session.flush()
        project = session.scalars(select(Project).where(Project.organization_id == row.id)).first()
        if project is None:
            project = Project(id=new_id("proj_"), organization_id=row.id, name="default", created_at=now)
            session.add(project)
            session.flush()
        return new_key(session, project.id, scope="operator", name="first", actor="server", now=now)[1]


def authenticate(request: Request) -> Principal:
    """The principal of a request, counted against its key's rate.

    Raises:
        ApiError: 401 without a valid key, 403 for an organisation or project that is not the key's, 429 too often.
    """
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise ApiError(
            401,
            "No API key. Send it in the header Authorization: Bearer KEY (the client's api_key).",
            code="missing_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return principal_of(request, Key.digest == digest(secret), f"The API key that ends in {secret[-4:]!r}")


def principal_of(request: Request, which: ColumnElement[bool], called: str) -> Principal:
    """The principal of a request whose key was found out, counted against the key's rate.

    Args:
        request: The request.
        which: The key, as a condition on its row.
        called: What a message calls it.

    Raises:
        ApiError: as ``authenticate``.
    """
    context = context_of(request)
    with context.database.read() as session:
        known = select(Key, Project, Organization).join(Project, Project.id == Key.project_id)
        known = known.join(Organization, Organization.id == Project.organization_id)
        row = session.execute(known.where(which)).first()
        key = None if row is None else row[0]
        now = context.database.now(session)
        if key is None or key.revoked_at is not None or (key.expires_at or now) < now:
            why = "unknown" if key is None else "revoked" if key.revoked_at is not None else "expired"
            raise ApiError(
                401,
                f"{called} is {why}. Ask the operator for one.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        assert row is not None
        principal = _principal(session, key, row[1], row[2], request)
    limits = context.settings.limits
    context.rates.count(key.id, "requests", limits.requests_per_minute)
    if limits.organization_requests_per_minute:
        context.rates.count(
            principal.organization_id, "requests", limits.organization_requests_per_minute, whose="this organisation"
        )
    request.state.principal = principal
    return principal


def _principal(session: Session, key: Key, project: Project, organization: Organization, request: Request) -> Principal:
    """Who a key is, in the project that its headers ask for."""
    wanted = request.headers.get("openai-project") or project.id
    if wanted != project.id:
        other = session.get(Project, wanted) if key.scope == "operator" and len(wanted) <= 64 else None
        owner = None if other is None else session.get(Organization, other.organization_id)
        if other is None or owner is None:
            raise ApiError(
                403,
                "The header OpenAI-Project names a project that is not this key's. Leave it out, or use its key.",
                code="mismatched_project",
                param="OpenAI-Project",
            )
        project, organization = other, owner
    if request.headers.get("openai-organization") not in (None, "", organization.id, organization.name):
        raise ApiError(
            403,
            "The header OpenAI-Organization names an organisation that is not this key's. Leave it out.",
            code="mismatched_organization",
            param="OpenAI-Organization",
        )
    return Principal(key.id, key.scope, organization.id, organization.name, project.id)


def require_operator(request: Request) -> Principal:
    """The principal, who is an operator.

    Raises:
        ApiError: 403 for anybody else.
    """
    principal = authenticate(request)
    if not principal.is_operator:
        raise ApiError(403, "Only an operator's key may do this.", code="operator_only")
    return principal


Caller = Annotated[Principal, Depends(authenticate)]
Operator = Annotated[Principal, Depends(require_operator)]


class Rates:
    """Requests of each key and organisation in this process, in buckets that refill evenly over a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[tuple[str, str], tuple[float, float]] = {}
        """What is left of a bucket, and when it was so."""

    def count(self, owner_id: str, kind: str, per_minute: int, *, whose: str = "this key") -> None:
        """Take one from the owner's bucket of that kind.

        Raises:
            ApiError: 429: it is empty; says when it no longer is.
        """
        now = self._clock()
        with self._lock:
            if len(self._left) >= MAX_COUNTERS:
                self._left.clear()
            left, since = self._left.get((owner_id, kind), (float(per_minute), now))
            left = min(float(per_minute), left + (now - since) * per_minute / 60)
            if left >= 1:
                self._left[owner_id, kind] = left - 1, now
                return
            self._left[owner_id, kind] = left, now
            wait = (1 - left) * 60 / per_minute
        raise ApiError(
            429,
            f"Too many {kind}: {whose} may make {per_minute} a minute. Wait {wait:.1f} seconds.",
            code="rate_limit_exceeded",
            headers={"retry-after": str(max(1, round(wait))), "retry-after-ms": str(max(1, round(wait * 1000)))},
        )
