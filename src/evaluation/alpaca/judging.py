"""Annotation by the alpaca-eval package (prompt, order of the two answers, parser), with the judge asked by us.

The package's annotator runs twice over all pairs: once up to the point where it would ask, for the prompts, and once
more with the judge's answers in their place. In between the answers come from wherever they come from.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.evaluation.alpaca.package import ANNOTATOR, alpaca_eval, quiet

Choice = Mapping[str, Any]
"""An endpoint's choice: ``{"text", "logprobs": {"content": [{"token", "logprob", "top_logprobs": […]}]}}``."""


@dataclass(frozen=True)
class Pair:
    """An instruction, the baseline's answer and the model's."""

    instruction: str
    output_1: str
    output_2: str


@dataclass(frozen=True)
class Question:
    """What the judge is asked about pair ``place``; ``shown``: the two answers in the order in which it sees them."""

    place: int
    messages: tuple[Mapping[str, str], ...]
    shown: tuple[str, str]


class PromptsOnly(Exception):  # noqa: N818 - no error
    """Ends the first run of the annotator."""


def judge_settings() -> dict[str, Any]:
    """What a request asks for besides the messages: one token and the log-probs of the five likeliest."""
    settings = dict(annotator()[1].completions_kwargs)
    settings.pop("model_name")
    return {"top_p": 1.0, **settings}  # top_p: what the package sends where its configuration is silent


def prompt_template() -> str:
    """The judge's prompt, with places for the instruction and both answers."""
    return str(annotator()[1].prompt_template)


def questions(pairs: Sequence[Pair]) -> list[Question]:
    """What to ask, in the order of ``pairs``. Two equal answers are a tie without being asked about."""
    shown: list[Pair] = []
    found: list[str] = []

    def collect(prompts: Sequence[str], **_: Any) -> dict[str, Any]:
        found.extend(prompts)
        raise PromptsOnly

    with contextlib.suppress(PromptsOnly):
        annotate(pairs, collect, shown)
    from alpaca_eval.utils import prompt_to_chatml

    places = {pair.instruction: place for place, pair in enumerate(pairs)}
    asked = []
    for prompt, seen in zip(found, shown, strict=True):
        marked = any(mark in text for mark in MARKS for text in (seen.instruction, seen.output_1, seen.output_2))
        messages = filled(prompt_to_chatml(prompt_template()), seen) if marked else prompt_to_chatml(prompt.strip())
        asked.append(Question(places[seen.instruction], tuple(messages), (seen.output_1, seen.output_2)))
    return sorted(asked, key=lambda one: one.place)


MARKS = ("<|im_start|>", "<|im_end|>")
"""How the package's prompts tell messages apart."""


def filled(messages: Sequence[Mapping[str, str]], seen: Pair) -> list[dict[str, str]]:
    """The template's messages with the texts in their places, whatever marks these hold.

    The package would cut such a prompt up at the text's own marks: an answer could end the question, or add messages.
    """

    def fill(match: re.Match[str]) -> str:
        return str(getattr(seen, match[1]))

    return [
        {**message, "content": re.sub(r"\{(instruction|output_1|output_2)\}", fill, message["content"])}
        for message in messages
    ]


def preferences(pairs: Sequence[Pair], choices: Mapping[int, Choice | None]) -> list[float | None]:
    """The preference of each pair from the judge's choices (place -> choice), from 1 (baseline) to 2 (model).

    p = p(m) / (p(m) + p(M)) over the five likeliest first tokens, the first shown answer being "m"; 2 - p, or 1 + p
    where the order was switched; 1.5 for two equal answers; ``None`` where neither token is among the five or where
    there are no log-probs.
    """
    parse = annotator()[1].fn_completion_parser
    with quiet():
        readable = {place for place, choice in choices.items() if choice is not None and parses(parse, choice)}
    shown: list[Pair] = []
    places = {pair.instruction: place for place, pair in enumerate(pairs)}

    def answers(prompts: Sequence[str], **_: Any) -> dict[str, Any]:
        given = [choices[places[pair.instruction]] for pair in shown]
        return {"completions": [(choice or {}).get("text", "") for choice in given], "completions_all": given}

    kept = [place for place, pair in enumerate(pairs) if place in readable or pair.output_1 == pair.output_2]
    found: list[float | None] = [None] * len(pairs)
    if kept:  # the others would be None anyway, and a table of nothing but None trips the package
        rows = annotate([pairs[place] for place in kept], answers, shown)
        for place, row in zip(kept, rows, strict=True):
            found[place] = float(row["preference"])
    return found


def parses(parse: Callable[[Choice], list[float]], choice: Choice) -> bool:
    """Whether the package's parser reads one number out of ``choice``."""
    try:
        values = parse(choice)
    except Exception:  # whatever an endpoint may leave out
        return False
    return len(values) == 1 and 1 <= values[0] <= 2


def annotator() -> tuple[Any, Any]:
    """The package's annotator of AlpacaEval 2, writing nothing, and the one single annotator in it."""
    alpaca_eval()
    from alpaca_eval.annotators import PairwiseAnnotator

    with quiet():
        whole = PairwiseAnnotator(annotators_config=ANNOTATOR, caching_path=None)
    (single,) = whole.annotators.values()
    return whole, single


def annotate(pairs: Sequence[Pair], complete: Callable[..., dict[str, Any]], shown: list[Pair]) -> list[dict[str, Any]]:
    """The package's rows for ``pairs``, ``complete`` being asked for completions; ``shown`` receives the pairs it is
    asked about, in their order and with the answers as the judge sees them."""
    from alpaca_eval.processors import BaseProcessor

    class Watch(BaseProcessor):  # type: ignore[misc]
        def preprocess(self, df_to_annotate: Any) -> Any:
            columns = [df_to_annotate[name] for name in ("instruction", "output_1", "output_2")]
            shown.extend(Pair(*texts) for texts in zip(*columns, strict=True))
            return df_to_annotate

        def postprocess(self, df_annotated: Any) -> Any:
            return df_annotated

    whole, single = annotator()
    single.processors.append(Watch())
    single.is_shuffle = False  # with one pair a prompt it changes the order of the calls alone
    single.fn_completions = complete
    rows = [{"instruction": pair.instruction, "output_1": pair.output_1, "output_2": pair.output_2} for pair in pairs]
    with quiet():
        found: list[dict[str, Any]] = whole(rows, chunksize=None)
    return found
