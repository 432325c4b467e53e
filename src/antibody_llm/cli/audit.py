"""``antibody audit RUN`` and ``antibody audit train``."""

from typing import Any

import typer
from typer.core import TyperGroup

from ..settings.audit import AuditSettings, AuditTrainSettings
from .verbs import command

TRAIN, RUN = "train", "run"


class _RunByDefault(TyperGroup):
    """The command after ``audit`` is left out for a run; a run's folder that is called train is written ``./train``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (TRAIN, RUN, "--help"):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Judge a finished job by what its model does on a fixed set of probes: antibody audit RUN.",
    no_args_is_help=True,
)
app.command(RUN)(command("audit", AuditSettings, room="audit.verb"))
app.command(TRAIN)(command("train", AuditTrainSettings, room="audit.train"))
