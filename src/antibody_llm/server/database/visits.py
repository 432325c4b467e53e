"""The row of somebody who has signed in to the console."""

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from .tables import Table


class Visit(Table):
    """Somebody who has signed in to the console with a key."""

    __tablename__ = "visits"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the cookie, hex."""
    key_id: Mapped[str] = mapped_column(ForeignKey("keys.id"))
    created_at: Mapped[float]
    expires_at: Mapped[float] = mapped_column(index=True)
