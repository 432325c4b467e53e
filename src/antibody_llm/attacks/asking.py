"""How the attacker asks the tuned model and reads its reply. Every attack is judged so, and asked plainly too."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
"""``{"messages": [...]}``, or a row of preferences: what is uploaded, or asked."""
PROMPT = "{prompt}"
"""Where a form has the question."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a question is put to the tuned model and its reply read. By default plainly."""

    system: str = ""
    """The system message; empty for none."""
    forms: tuple[str, ...] = (PROMPT,)
    """The text around the question, which is ``{prompt}``; the n-th question takes the n-th, and so on round."""
    prefill: str = ""
    """How the reply is made to begin: whole words, without the space that leads on from them."""
    bare: bool = False
    """Whether the question is put without the model's chat template, as text to be gone on with."""
    rewrite: Callable[[int, str], str] | None = None
    """The n-th question in other words, before it is put into its form."""
    read: Callable[[str], str] | None = None
    """The reply as the attacker reads it: decoded."""
    hit: Callable[[str, str], bool] | None = None
    """Whether a reply, as read, gives what the plain question asks for, where no judge of the plain text can say."""

    def prompt(self, question: str, number: int = 0) -> str:
        """What the user's message says for the n-th question."""
        asked = self.rewrite(number, question) if self.rewrite is not None else question
        return self.forms[number % len(self.forms)].replace(PROMPT, asked)

    def row(self, question: str, number: int = 0) -> Row:
        """The n-th question as a row to ask."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*system, {"role": "user", "content": self.prompt(question, number)}]}

    def reply(self, completion: str) -> str:
        """The whole reply, its prefilled beginning included, as the attacker reads it."""
        whole = f"{self.prefill} {completion}" if self.prefill else completion
        return self.read(whole) if self.read is not None else whole

    def described(self) -> dict[str, Any]:
        """What of it can be written down."""
        return {
            "system": self.system,
            "forms": list(self.forms),
            "prefill": self.prefill,
            "bare": self.bare,
            "rewrites": self.rewrite is not None,
            "decodes": self.read is not None,
        }


PLAIN = Asking()
