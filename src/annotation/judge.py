"""A language model as judge: behind an OpenAI-compatible endpoint it reads a prompt and a response, and grades it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.annotation.base import Batch, Item, Score, ScoreBatch, Shard, conversation_text, every_item
from src.errors import UserError

if TYPE_CHECKING:
    from src.generation.client import ChatClient, ChatRequest

TEMPLATES = Path(__file__).parent / "judge_templates"
PLACES = ("prompt", "response")
UNPARSED = "no grade in the judge's answer"


@dataclass(frozen=True)
class Judge:
    """Scores are grades that a chat model writes at temperature 0.

    * ``template``: a name of ``judge_templates/`` or a text file, with {{prompt}} and {{response}}.
    * ``pattern``: a regular expression whose group 1 is the grade. An answer with no grade between ``lowest`` and
      ``highest``, or with several different ones, is asked for again with another ``seed``, ``attempts`` times in all;
      then the response has no score and is counted.
    * ``max_tokens``: of an answer; ``None`` leaves it to the endpoint. ``extra``: further settings of a request.
    * The key comes from the environment variable ``key_variable`` alone. ``tries`` and ``timeout`` (seconds) are of one
      request to an endpoint that is busy or down; after them the program ends, and goes on when started again.

    Answers are kept below ``cache_root`` by the whole request, so an equal one is never paid for twice.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    template: str = "helpfulness"
    pattern: str = r"\[\[(-?\d+(?:\.\d+)?)\]\]"
    lowest: float = 1.0
    highest: float = 10.0
    attempts: int = 3
    max_tokens: int | None = 1024
    extra: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    batch_size: int = 64
    tries: int = 6
    timeout: float = 120.0

    def __post_init__(self) -> None:
        for name in ("attempts", "concurrency", "batch_size", "tries"):
            if getattr(self, name) < 1:
                raise UserError(f"scorer.{name}={getattr(self, name)} cannot work; give at least 1")
        if not self.lowest < self.highest:
            raise UserError(f"scorer.lowest={self.lowest:g} must be below scorer.highest={self.highest:g}")
        if taken := sorted({"model", "messages", "temperature"} & set(self.extra)):
            raise UserError(f"scorer.extra.{taken[0]} is set by the judge itself (temperature 0); remove it there")
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise UserError(f"scorer.pattern={self.pattern!r} is no regular expression: {error}") from error
        if groups != 1:
            raise UserError(f"scorer.pattern={self.pattern!r} has {groups} groups; put ( ) around the grade alone")
        judge_text(self.template)

    def describe(self) -> dict[str, Any]:
        names = ("base_url", "model", "pattern", "lowest", "highest", "attempts", "max_tokens", "extra")
        template = hashlib.sha256(judge_text(self.template).encode()).hexdigest()
        settings = {name: getattr(self, name) for name in names}
        return {"scorer": "judge", "template": template, "temperature": 0, **settings}

    def batches(self, shard: Shard) -> list[Batch]:
        items = every_item(shard)
        return [tuple(items[start : start + self.batch_size]) for start in range(0, len(items), self.batch_size)]

    def open(self, folder: Path) -> ScoreBatch:
        from src.generation.client import ChatClient, ChatEndpoint, Retries

        endpoint = ChatEndpoint(self.base_url, self.model, self.key_variable)
        client = ChatClient(endpoint, Retries(attempts=self.tries, timeout=self.timeout), folder)
        text = judge_text(self.template)

        def score(shard: Shard, batch: Batch) -> list[Score]:
            return self.grades(client, text, shard, batch)

        return score

    def grades(self, client: ChatClient, text: str, shard: Shard, batch: Batch) -> list[Score]:
        """Ask for every response of the batch, and again for those without a readable grade."""
        found: dict[Item, float] = {}
        for attempt in range(self.attempts):
            open_items = [item for item in batch if item not in found]
            requests = [self.request(text, shard, item, attempt) for item in open_items]
            for index, completion in client.each(requests, self.concurrency):
                grade = self.grade(completion.text)
                if grade is not None:
                    found[open_items[index]] = grade
        return [Score(found[item]) if item in found else Score(None, UNPARSED) for item in batch]

    def request(self, text: str, shard: Shard, item: Item, attempt: int) -> ChatRequest:
        """What is asked about one response; further attempts differ by their seed."""
        from src.generation.client import ChatRequest

        candidates = shard[item[0]]
        content = filled(text, conversation_text(candidates.prompt), candidates.responses[item[1]].text)
        settings: dict[str, Any] = {"temperature": 0, **self.extra}
        if self.max_tokens is not None:
            settings["max_tokens"] = self.max_tokens
        if attempt:
            settings["seed"] = attempt
        return ChatRequest([{"role": "user", "content": content}], settings)

    def grade(self, answer: str) -> float | None:
        """The one grade in an answer, or ``None``."""
        grades = set()
        for match in re.finditer(self.pattern, answer):
            try:
                grades.add(float(match.group(1)))
            except (TypeError, ValueError):  # a pattern of the user's may match what is no number
                return None
        value = grades.pop() if len(grades) == 1 else None
        return value if value is not None and self.lowest <= value <= self.highest else None


def judge_text(template: str) -> str:
    """The text of a judge's template; raises ``UserError`` when it is nowhere or lacks a place."""
    named = TEMPLATES / f"{template}.txt"
    path = named if named.exists() else Path(template).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in TEMPLATES.glob("*.txt")))
        raise UserError(f"scorer.template={template} is none of {known}, and no text file; give one of them") from error
    if missing := [name for name in PLACES if f"{{{{{name}}}}}" not in text]:
        raise UserError(
            f"scorer.template={template} has no {{{{{missing[0]}}}}}, so the judge would not read it; write "
            "{{prompt}} and {{response}} where they belong"
        )
    return text


def filled(text: str, prompt: str, response: str) -> str:
    """The template with both texts in their places; braces inside them stay as they are."""
    values = {"prompt": prompt, "response": response}
    return re.sub(r"\{\{(prompt|response)\}\}", lambda match: values[match.group(1)], text)
