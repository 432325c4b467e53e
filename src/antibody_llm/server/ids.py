"""Ids that nobody can guess, and the names of fine-tuned models."""

import re
import secrets
import string

ALPHABET = string.ascii_letters + string.digits
NUM_CHARACTERS = 24


def new_id(prefix: str) -> str:
    """``prefix`` and 24 random letters and digits, which is 142 bits."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(NUM_CHARACTERS))


def model_name(*, base: str, organization: str, suffix: str | None, job_id: str, step: int | None = None) -> str:
    """``ft:BASE:ORG:SUFFIX:ID``, with ``:ckpt-step-N`` for a checkpoint.

    Args:
        base: The offered base model at the beginning of the chain.
        organization: Its name.
        suffix: The customer's text; what a URL or the colons do not allow becomes a hyphen.
        job_id: Its first twelve random characters make the name unique.
        step: The step of a checkpoint; None for the result.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", suffix or "")
    name = f"ft:{base}:{organization}:{plain}:{job_id.removeprefix('ftjob-')[:12]}"
    return name if step is None else f"{name}:ckpt-step-{step}"
