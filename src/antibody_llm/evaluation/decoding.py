"""How completions are drawn from a model; stored with every measure, which could not be repeated without it."""

from dataclasses import dataclass

from ..errors import ConfigError
from ..mentions import setting


@dataclass(frozen=True, kw_only=True)
class DecodingSettings:
    """Settings of ``generation.generate``."""

    max_new_tokens: int = 512
    """Most tokens per completion. Booster/Antibody: 512 for the harmful score, 200 for task accuracy."""
    batch_size: int = 32
    """Prompts decoded together. Text does not depend on it in float32; in bfloat16 padding can turn a near tie."""
    temperature: float = 0.0
    """0 is greedy; otherwise a draw from softmax(logits / temperature), over the whole vocabulary."""
    seed: int = 0
    """Seed of the draws; without effect at temperature 0."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(
                f"{setting('max_new_tokens')} is {self.max_new_tokens}: a completion needs at least 1 token."
            )
        if self.batch_size < 1:
            raise ConfigError(f"{setting('batch_size')} is {self.batch_size}: set it to 1 or more.")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(
                f"{setting('temperature')} is {self.temperature}: it must be finite and not negative. 0 is greedy."
            )
        if self.seed < 0:
            raise ConfigError(f"{setting('seed')} is {self.seed}: it must be 0 or more.")
