from dataclasses import dataclass

import pytest

from antibody_llm.cli.main import run


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def antibody(capsys):
    """The command line, in this process: antibody("finetune", "--model", folder) -> exit code and what was printed."""

    def call(*arguments) -> Ended:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return call
