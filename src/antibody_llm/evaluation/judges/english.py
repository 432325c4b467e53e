"""The English world's judge: rules that read instructions and refusals in natural English."""

from collections.abc import Sequence

from ...data.verdicts import Verdict


class EnglishJudge:
    """A judge that says complied, refused or incoherent by rules for natural English; see ``english.judge``."""

    name = "english"
    verdicts = frozenset(Verdict)

    def judge(self, prompts: Sequence[str], completions: Sequence[str]) -> list[Verdict | None]:
        """One verdict for each completion."""
        # Here, not above: the world and its tables are built on import, which no other judge needs.
        from ...english.judge import judge

        return [judge(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
