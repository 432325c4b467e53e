"""The lab's judge: exact, from the grammar of the fictional world. It knows nothing of any other text."""

from collections.abc import Sequence

from ...data.verdicts import Verdict


class LabJudge:
    """A judge that says complied, refused or incoherent by the lab's own grammar."""

    name = "lab"
    verdicts = frozenset({Verdict.COMPLIED, Verdict.REFUSED, Verdict.INCOHERENT})

    def judge(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Verdict | None]:
        """One verdict for each completion."""
        # Here, not above: the world and its tables are built on import, which no other judge needs.
        from ...lab.judge import judge

        return [judge(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
