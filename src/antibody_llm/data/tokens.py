"""All rows of a run as tokens, whatever sources they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..events import inform
from .encode import Renderer, encode_rows
from .notices import template_notices
from .records import Record, TokenizedRow


@dataclass(frozen=True, slots=True)
class TokenizedRoles:
    """Rows that fit, by role, and (source, line, number of tokens) of those that do not."""

    rows: dict[str, list[TokenizedRow]]
    too_long: list[tuple[str, int, int]]


def encode_roles(
    records: Mapping[str, Sequence[Record]], renderer: Renderer, *, skip_too_long: bool, refusal_tokens: int = 0
) -> TokenizedRoles:
    """Rows of each role as tokens, source by source, so that an error names the right one.

    What the template does with them that their writer may not expect is reported first, and once.

    Args:
        records: The rows of each role.
        renderer: Encodes the rows; has the limit of their length.
        skip_too_long: See ``encode_rows``.
        refusal_tokens: See ``encode_rows``.

    Raises:
        DataError: see ``encode_rows``.
    """
    for notice in template_notices([record for of_role in records.values() for record in of_role], renderer):
        inform(notice)
    rows: dict[str, list[TokenizedRow]] = {}
    too_long: list[tuple[str, int, int]] = []
    for role, of_role in records.items():
        rows[role] = []
        for source in dict.fromkeys(record.source for record in of_role):
            some = [record for record in of_role if record.source == source]
            encoded = encode_rows(some, renderer, skip_too_long=skip_too_long, refusal_tokens=refusal_tokens)
            rows[role] += encoded.rows
            too_long += [(source, line, num) for line, num in encoded.too_long]
    return TokenizedRoles(rows, too_long)
