"""Control tokens: what only a chat template may write, and how text that spells one stays text.

A tokenizer finds its special tokens anywhere in a text, in the words of a stranger as well as in the template around
them. Here the two are kept apart, in three steps:

    guard    content is put into the template with an invisible mark inside whatever could be read as a control token
    split    what the template rendered is cut at the control tokens that it wrote itself: no other is whole any more
    encode   the marks are taken out, and the text is encoded in one go by a twin of the tokenizer whose control tokens
             are called by names that nobody can guess, each with the id, the flags and the place of the original

The twin is the tokenizer in all else (normaliser, pre-tokenisation, merges), so that a piece of text between two
control tokens becomes what it becomes at inference, its seams with the template included. Text that spells nothing
takes none of these steps.

A control token is a special token, an added token of the form ``<|user|>``, or an added token in brackets that the chat
template writes (``<tool_call>``, ``<think>``). Added words and runs of spaces are text like any other.
"""

import json
import re
import secrets
import unicodedata
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..errors import ModelError
from ..mentions import setting

GUARD = "\ufdd0"
"""Begins every mark: a code point that Unicode reserves for a program's own use."""
LITERAL, BREAK, SOLO, HOLD = (GUARD + mark for mark in "\ufdd1\ufdd2\ufdd3\ufdd4")
"""A ``GUARD`` of the content's own; between two characters; before a character that is a control token; ``HOLD`` is
never put into content, so that text behind it is not content's (a placeholder of ours)."""

_MARKS = re.compile(f"{GUARD}([\ufdd1-\ufdd4])")
_PIPED = re.compile(r"<[|｜][^\s<>]+[|｜]>")
"""A template may make these of parts (``'<|' + role + '|>'``): its source need not name them."""
_BRACKETED = re.compile(r"[<\[{(|｜].*[>\])}|｜]", re.DOTALL)

OTHER_MODELS = re.compile(
    r"<\|[^\s|<>]{1,40}\|>"
    r"|</?s>|<(?:bos|eos|pad|unk|cls|sep|mask)>|<(?:start|end)_of_turn>|<end_of_utterance>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK)\]|<</?SYS>>"
    r"|</?(?:tool_call|tool_response|think)>",
    re.IGNORECASE,
)
"""Control tokens of the common families, to point at rows that try them. Nothing is split or dropped by this list."""
_HINTS = re.compile(r"[<\[|]")
LONG = 10_000
"""Characters of a content that is not kept to be used again."""


class ControlTokens:
    """The control tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        template = tokenizer.chat_template or ""
        source = template if isinstance(template, str) else "\n".join(map(str, template.values()))
        self._flags = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
        self.tokens: frozenset[str] = frozenset(
            text
            for text, token in self._flags.items()
            if text and (token.special or _PIPED.fullmatch(text) or (text in source and _BRACKETED.fullmatch(text)))
        )
        self._takes_out = "replace" in source
        """Whether the template may take something out of a content, so that what is left spells a token."""
        self._heads = _in_any_case(token[0] for token in self.tokens)
        self._tails = _in_any_case(token[-1] for token in self.tokens)
        self._ends_in_space = any(end.isspace() for end in self._heads | self._tails)
        self._longest = max(map(len, self.tokens), default=0)
        # A row's texts are rendered once as its prompt and once more with its answer.
        self._guarded_lately = lru_cache(maxsize=64)(self._guarded)

    @property
    def special(self) -> frozenset[str]:
        """Those that decoding leaves out."""
        return frozenset(token for token in self.tokens if self._flags[token].special)

    def id_of(self, token: str) -> int:
        """The id of a control token."""
        return next(number for number, other in self._tokenizer.added_tokens_decoder.items() if str(other) == token)

    # -- in content -----------------------------------------------------------------------------------------------

    def guarded(self, content: str) -> str:
        """``content`` for the template: with marks wherever a control token could begin, end or be.

        Its first and its last character stay what they are, but for a character that alone is a control token, so that
        a template that trims, trims the same.
        """
        return self._guarded_lately(content) if len(content) < LONG else self._guarded(content)

    def _guarded(self, content: str) -> str:
        if GUARD in content:
            content = content.replace(GUARD, LITERAL)
        if not self.can_be_read_in(content):
            return content
        marked = []
        for character in content:
            if character in self._tails:
                marked.append(BREAK)
            if character in self.tokens:
                marked.append(SOLO)
            marked.append(character)
            if character in self._heads:
                marked.append(BREAK)
        # Where only the normalised text spells one, nothing above needs to match; the mark alone asks for the twin.
        return _after_first_character("".join(marked))

    def can_be_read_in(self, content: str) -> bool:
        """Whether the tokenizer could find a control token in ``content``, or at its seam with a template."""
        if not self.tokens:
            return False
        if not self._heads.isdisjoint(content) and (self._takes_out or self._pattern_in_any_case.search(content)):
            return True
        if self._normalised is not None and self._normalised.search(self._normalise(content)):
            return True
        # A template may trim what it is given, change its case and write brackets around it.
        reach = self._longest - 1
        head, tail = content.lstrip()[:reach].lower(), content.rstrip()[-reach:].lower()
        if self._reaches_out(head, tail) or (len(content) <= reach and tail.strip() in self._middles):
            return True
        return self._ends_in_space and self._reaches_out(content[:reach].lower(), content[-reach:].lower())

    def _reaches_out(self, head: str, tail: str) -> bool:
        """Whether ``tail`` ends as a control token begins, or ``head`` begins as one ends."""
        return any(tail[i:] in self._beginnings for i in range(len(tail)) if tail[i] in self._heads) or any(
            head[: i + 1] in self._endings for i in range(len(head)) if head[i] in self._tails
        )

    def spelled_in(self, content: str) -> str | None:
        """The first control token that ``content`` spells, of this model or of another, however disguised.

        Invisible characters and compatibility forms (full width) do not hide one. The token is text all the same.
        """
        if self._heads.isdisjoint(content) and content.isascii() and not _HINTS.search(content):
            return None
        for text in dict.fromkeys((content, _plain(content))):
            for pattern in (self._pattern, OTHER_MODELS):
                if found := pattern.search(text):
                    return found.group()
        if self._normalised is not None and (found := self._normalised.search(self._normalise(content))):
            return found.group()
        return None

    # -- in what a template rendered ------------------------------------------------------------------------------

    def split(self, rendered: str) -> list[str]:
        """Text and control tokens in turn, text first and last; the tokens are the template's own."""
        return self._pattern_with_groups.split(rendered)

    def encode(self, rendered: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of rendered text with marks in it.

        Raises:
            ModelError: the tokenizer has no twin.
        """
        pieces = self.split(rendered)
        text = "".join(self._alias[piece] if i % 2 else unguarded(piece) for i, piece in enumerate(pieces))
        return list(self._twin.encode(text, add_special_tokens=add_special_tokens).ids)

    # -- what of it all is made -----------------------------------------------------------------------------------

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self._alternatives(self.tokens) or r"(?!)")

    @cached_property
    def _pattern_in_any_case(self) -> re.Pattern[str]:
        return re.compile(self._pattern.pattern, re.IGNORECASE)

    @cached_property
    def _pattern_with_groups(self) -> re.Pattern[str]:
        return re.compile(f"(?<!{SOLO})({self._pattern.pattern})")

    def _alternatives(self, tokens: frozenset[str]) -> str:
        """Longest first, as tokenizers match them."""
        return "|".join(
            rf"(?<!\w){re.escape(token)}(?!\w)" if self._flags[token].single_word else re.escape(token)
            for token in sorted(tokens, key=lambda token: (-len(token), token))
        )

    @cached_property
    def _normalised(self) -> re.Pattern[str] | None:
        """Tokens that can be found in the normalised text, in the form that they have there.

        Some are looked for there, and some are found there by the model itself (Unigram's), which has them as pieces.
        """
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None or backend.normalizer is None:
            return None
        forms = {self._normalise(token) for token in self.tokens if self._flags[token].normalized} - {""}
        model = Tokenizer(backend.model)
        unknown = self._tokenizer.unk_token  # what any text can become
        pieces = (t for t in self.tokens - {unknown} if backend.model.token_to_id(t) is not None)
        forms |= {token for token in pieces if model.encode(token).ids == [backend.model.token_to_id(token)]}
        return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True)))) if forms else None

    def _normalise(self, text: str) -> str:
        return str(self._tokenizer.backend_tokenizer.normalizer.normalize_str(text))

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(token[:size].lower() for token in self.tokens for size in range(1, len(token)))

    @cached_property
    def _endings(self) -> frozenset[str]:
        return frozenset(token[-size:].lower() for token in self.tokens for size in range(1, len(token)))

    @cached_property
    def _middles(self) -> frozenset[str]:
        """Tokens without some of the signs around them: what a template that writes ``<{{ name }}>`` makes whole."""
        found = set()
        for token in self.tokens:
            first = next((i for i, character in enumerate(token) if character.isalnum()), 0)
            last = next((i for i, character in enumerate(reversed(token)) if character.isalnum()), 0)
            found |= {token[i : len(token) - j].lower() for i in range(1, first + 1) for j in range(1, last + 1)}
        return frozenset(found)

    @cached_property
    def _alias(self) -> dict[str, str]:
        """Names for the twin's control tokens, of one length, so that none is the beginning of another.

        They begin and end in a sign: two in a row are two words to a token that is matched as a whole word.
        """
        nonce = secrets.token_hex(16)
        return {token: f"<{nonce}{number:06d}>" for number, token in enumerate(sorted(self.tokens))}

    @cached_property
    def _twin(self) -> Tokenizer:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"the tokenizer of {self._tokenizer.name_or_path} has no tokenizer.json (it is of the slow kind), so "
                "that rows which spell its control tokens cannot be kept apart from them. Convert the tokenizer, or "
                f"leave such rows out with {setting('control_tokens', 'refuse')}."
            )
        twin = Tokenizer.from_str(json.dumps(_renamed(json.loads(backend.to_str()), self._alias)))
        for token, alias in self._alias.items():
            if twin.token_to_id(alias) != backend.token_to_id(token):
                raise ModelError(
                    f"the tokenizer of {self._tokenizer.name_or_path} numbers its added tokens in an unknown way "
                    f"({token!r} is {backend.token_to_id(token)}, not {twin.token_to_id(alias)}), so that rows which "
                    "spell control tokens cannot be kept apart from them. Leave them out with "
                    f"{setting('control_tokens', 'refuse')}."
                )
        return twin

    def check(self, rendered: str) -> None:
        """Compare both ways of encoding on a text that spells nothing of its own.

        Raises:
            ModelError: the ids differ; with both.
        """
        plain = list(self._tokenizer(rendered, add_special_tokens=False).input_ids)
        apart = self.encode(rendered)
        if plain != apart:
            raise ModelError(
                f"self-check: the tokenizer of {self._tokenizer.name_or_path} reads a conversation as {plain}, and as "
                f"{apart} with its control tokens kept apart. It finds control tokens in an unknown way, and rows that "
                f"spell them cannot be trained safely. Leave them out with {setting('control_tokens', 'refuse')}."
            )


def unguarded(text: str) -> str:
    """``text`` without the marks of ``guarded``."""
    return _MARKS.sub(lambda mark: GUARD if mark.group() == LITERAL else "", text) if GUARD in text else text


def _in_any_case(characters: Iterable[str]) -> frozenset[str]:
    return frozenset(form for character in characters for form in (character, character.lower(), character.upper()))


def _after_first_character(marked: str) -> str:
    """A mark behind the first character that is no space, where there is none in front of it."""
    space = len(marked) - len(marked.lstrip())
    if marked[space : space + 1] in (GUARD, ""):
        return marked
    return f"{marked[: space + 1]}{BREAK}{marked[space + 1 :]}"


def _plain(text: str) -> str:
    """``text`` without what cannot be seen, in its compatibility form."""
    visible = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cn", "Co", "Cc") or c in "\t\n\r")
    return unicodedata.normalize("NFKC", visible)


def _renamed(state: dict[str, Any], alias: dict[str, str]) -> dict[str, Any]:
    """A tokenizer's JSON with other names for some of its tokens, wherever it names them."""
    state["truncation"] = state["padding"] = None
    for token in state["added_tokens"]:
        token["content"] = alias.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(vocabulary := model.get("vocab"), dict):
        model["vocab"] = {alias.get(token, token): number for token, number in vocabulary.items()}
    elif vocabulary is not None:  # Unigram: [token, score]
        model["vocab"] = [[alias.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") is not None:
        model["unk_token"] = alias.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # a control token is never made of smaller ones
        model["merges"] = [merge for merge in model["merges"] if alias.keys().isdisjoint(_made_of(merge))]
    return state


def _made_of(merge: str | list[str]) -> tuple[str, ...]:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second, first + second
