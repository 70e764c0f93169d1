"""Lengths, truncation and split of a data set."""

from __future__ import annotations

from dataclasses import dataclass

from src.errors import UserError

TRUNCATIONS = ("simpo", "drop")


@dataclass(frozen=True)
class PrepareOptions:
    """Lengths in tokens. Raises ``UserError`` for settings that cannot work.

    ``truncation``: ``simpo`` (a prompt keeps its end, then responses are cut, as in the SimPO family's code)
    or ``drop`` (what is too long is left out and counted). ``min_score_gap``: smallest difference of the two scores
    of a training pair, in their unit; smaller ones are left out and counted. 0 keeps all, scored or not.
    """

    max_length: int
    max_prompt_length: int
    truncation: str = "simpo"
    validation_fraction: float = 0.05
    split_seed: int = 0
    min_score_gap: float = 0.0

    def __post_init__(self) -> None:
        if self.truncation not in TRUNCATIONS:
            raise UserError(f"dataset.truncation={self.truncation} is unknown; use one of {', '.join(TRUNCATIONS)}")
        if not 2 <= self.max_prompt_length < self.max_length:
            raise UserError(
                f"dataset.max_prompt_length={self.max_prompt_length} must be at least 2 and smaller than "
                f"dataset.max_length={self.max_length}: the rest is what a response may take"
            )
        if not 0 < self.validation_fraction < 1:
            raise UserError(
                f"dataset.validation_fraction={self.validation_fraction} must be between 0 and 1: "
                "training needs held-out prompts to evaluate on (0.05 keeps a twentieth)"
            )


def truncate(
    prompt: list[int], responses: list[list[int]], options: PrepareOptions, bos_id: int | None = None
) -> tuple[list[int], list[list[int]]] | str:
    """Fit a prompt and its responses into ``options``, or the reason why they are dropped.

    ``simpo`` is the truncation of the SimPO repository (methods section 1): all sides are judged by the longest
    response; if it does not fit, the prompt keeps its last ``max_prompt_length`` tokens, and if it still does not,
    responses are cut to ``max_length - max_prompt_length``. Other than there, a prompt that is cut keeps its bos.
    """
    longest = max(map(len, responses))
    if options.truncation == "drop":
        if len(prompt) > options.max_prompt_length:
            return "prompt too long"
        return "response too long" if len(prompt) + longest > options.max_length else (prompt, responses)
    if len(prompt) + longest > options.max_length and len(prompt) > options.max_prompt_length:
        head = prompt[:1] if prompt[0] == bos_id else []
        prompt = head + prompt[len(prompt) - options.max_prompt_length + len(head) :]
    if len(prompt) + longest > options.max_length:
        responses = [response[: options.max_length - options.max_prompt_length] for response in responses]
    return prompt, responses
