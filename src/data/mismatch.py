"""Mismatched pairs: each prompt with the responses of another pair, by which KTO measures how far the policy drifts.

Which pair is settled by the data, once, as TRL does before training; HALOs shifts the responses within each forward
instead. So the reference's log-probs can be stored like all others, the same pairs of a window give the same estimate
in whatever order and micro-batches they come, and a forward of one pair has an estimate too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from src.data.pairset import TokenizedPair
from src.errors import UserError

RULE = "mismatched 1"
"""Name of the rule below, part of the key of stored log-probs; change it with the rule."""


@dataclass(frozen=True)
class MismatchedPairs(Sequence[TokenizedPair]):
    """Pair i: the prompt of ``pairs[i]`` with both responses of the next pair that has another prompt, wrapping.

    Several pairs in a row may share a prompt (multi-response data); the response to it would not be mismatched.
    Responses are cut so that a row has at most ``max_length`` tokens; one token always fits, since a prepared prompt
    is shorter than that. A flipped pair lends its responses as they are: the estimate takes both alike.
    """

    pairs: Sequence[TokenizedPair]
    max_length: int

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TokenizedPair:  # type: ignore[override]
        """Raises ``UserError`` when every pair has the same prompt."""
        pair = self.pairs[index]
        other = self.partner(pair)
        room = self.max_length - len(pair.prompt_ids)
        return replace(
            pair,
            id=f"{pair.id} with the responses of {other.id}",
            chosen_ids=other.chosen_ids[:room],
            rejected_ids=other.rejected_ids[:room],
            chosen_score=None,
            rejected_score=None,
        )

    def __iter__(self) -> Iterator[TokenizedPair]:
        return (self[index] for index in range(len(self)))

    def refuse_one_prompt(self) -> None:
        """Raise ``UserError`` when every pair has the same prompt; where the first has a partner, each one has."""
        self.partner(self.pairs[0])

    def partner(self, pair: TokenizedPair) -> TokenizedPair:
        """The pair that lends its responses to ``pair``."""
        for step in range(1, len(self)):
            other = self.pairs[(pair.index + step) % len(self)]
            if other.prompt_ids != pair.prompt_ids:
                return other
        raise UserError(
            f"the method compares with responses to another prompt, but all {len(self)} pairs of a split have the same "
            "prompt; give data with several prompts, or use method=kto_swapped, which needs no such responses"
        )
