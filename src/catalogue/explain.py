"""One method in words: the line of mathematics that its parts make, and what each of them does.

Everything said here is read from the YAML's comments and the parts' docstrings.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import cast

from omegaconf import DictConfig, OmegaConf

from src.catalogue.rows import Row, about, arguments, bases, comment_on, is_neutral, number, row_of
from src.config import CONF
from src.objective.types import Part

WIDTH = 110

SOURCE = re.compile(r"\(([^()]*(?:\b(?:19|20)\d\d\b|Eq\. ?\d|App(?:endix|\.) [A-Z]|[Ss]ection \d)[^()]*)\)")
"""A remark in parentheses that names a year, an equation or a section."""

OF_BOTH = ("Prospect",)
"""Links that look at both rewards rather than at their difference."""

NEEDS = {
    "demonstrations": "chosen responses alone; rejected ones are never computed",
    "reference": "log-probs of the frozen reference model (computed once and kept)",
    "scores": "the annotators' score of both responses, so a data set that has them",
    "log-probs per token": "log-probs token by token, not only their sum",
    "log-probs of prompts": "log-probs of the prompts' own tokens",
    "mismatched": "responses read after another pair's prompt: one more forward, without gradient",
    "anchor": "the model at perturbed weights, then restored bit for bit: more forwards, a backward for the direction",
    "gradient": "the gradient norm of every pair: one backward per pair",
    "statistics": "numbers of a whole group of pairs: the forward's, the window's (global batch), or a count in order",
    "state": "what earlier steps left behind; it is in the checkpoint, and validation never changes it",
    "perturbation": "a second look at moved weights, which are restored bit for bit",
}
"""What a need means, by the first words it goes by in the tables."""


def explained(method: str) -> str:
    """The page on one method; raises ``UserError`` for one that is not there."""
    row = row_of(method)
    sections = [
        textwrap.fill(f"{row.name}: {without_name(row)}", WIDTH),
        textwrap.indent(equation(row), "    ") + "\n" + notation(row),
        "\n\n".join(slot_text(slot, part) for slot, part in row.objective.parts.items() if shown(row, slot, part)),
        titled("Constants", [constant_text(row, name) for name in row.constants] or ["none"]),
        titled("Needs", [need_text(need) for need in row.needs] or ["the log-probs of both responses, nothing more"]),
        titled("Recipes", recipes(method) or ["none; the defaults above"]),
        titled("Sources", sources(row)) if sources(row) else "",
        f"Train it: python -m src.train method={method}",
    ]
    return "\n\n".join(section for section in sections if section)


def without_name(row: Row) -> str:
    """The head comment of the YAML without the method's name in front of it."""
    _, separator, rest = row.about.partition(": ")
    return rest if separator else row.about


def shown(row: Row, slot: str, part: Part) -> bool:
    """Whether a slot says something: those of supervised fine-tuning that need rejected responses do not."""
    return not is_neutral(part) and (row.objective.needs.rejected or slot == "regularizer")


# --- the equation -----------------------------------------------------------------------------------------------------


def equation(row: Row) -> str:
    """The general line of mathematics with what this method leaves out left out."""
    parts = row.objective.parts
    tempered = not is_neutral(parts["temperature"])
    margin = "reward(y_w) − reward(y_l)"
    target = "0" if is_neutral(parts["target"]) else "target_i"
    if type(parts["link"]).__name__ in OF_BOTH:
        margin = "reward(y_w), reward(y_l)"
    if tempered:
        margin, target = f"t_i · ({margin})", "0" if target == "0" else f"t_i · {target}"
    pair = f"link( {margin},  {target} )"
    if not is_neutral(parts["weight"]):
        pair = f"weight_i · {pair}"
    plain_mean = is_neutral(parts["reduce"])
    terms = [f"mean_i( {pair} )" if plain_mean else f"reduce_i( {pair} )"] if row.objective.needs.rejected else []
    if not is_neutral(parts["regularizer"]):
        terms.append("regularizer")
    return "loss = " + " + ".join(terms)


def notation(row: Row) -> str:
    """What stands in each place of the equation, as the YAML says it in short."""
    parts = row.objective.parts
    lines = []
    for slot, part in parts.items():
        if shown(row, slot, part):
            lines.append(f"    {slot:<12}  {comment_on(row.name, slot) or first_sentence(part)}")
    return "\n" + "\n".join(lines)


def first_sentence(part: Part) -> str:
    """How a part's docstring begins."""
    first = (inspect.getdoc(type(part)) or "").split("\n\n", 1)[0]
    return " ".join(first.split()).rstrip(".")


# --- slots, constants, needs ------------------------------------------------------------------------------------------


def slot_text(slot: str, part: Part) -> str:
    """A slot: its class with constants, and its docstring."""
    head = textwrap.fill(f"{slot}: {type(part).__name__}({arguments(part)})", WIDTH, subsequent_indent=" " * 8)
    body = filled(inspect.getdoc(type(part)) or "")
    return f"{head}\n{textwrap.indent(body, '    ')}"


def filled(docstring: str) -> str:
    """A docstring's paragraphs at our width; lists keep their lines."""
    paragraphs = []
    for paragraph in docstring.replace("``", "").split("\n\n"):
        is_list = paragraph.lstrip().startswith(("*", "-"))
        paragraphs.append(paragraph if is_list else textwrap.fill(" ".join(paragraph.split()), WIDTH))
    return "\n\n".join(paragraphs)


def constant_text(row: Row, name: str) -> str:
    comment = comment_on(row.name, name)
    return f"{name} = {number(row.constants[name])}" + (f"  ({comment})" if comment else "")


def need_text(need: str) -> str:
    meaning = next((words for start, words in NEEDS.items() if need.startswith(start)), "")
    return f"{need}: {meaning}" if meaning else need


def titled(title: str, lines: list[str]) -> str:
    return "\n".join(
        [title, *(textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="      ") for line in lines)]
    )


# --- where it comes from ----------------------------------------------------------------------------------------------


def recipes(method: str) -> list[str]:
    """Models for which there are tuned values, with those of the objective."""
    found = []
    for path in sorted((CONF / "recipe").glob(f"{method}__*.yaml")):
        values = cast(DictConfig, OmegaConf.load(path)).get("method", {})
        said = ", ".join(f"{key} {number(value)}" for key, value in values.items())
        model, _, paper = path.stem.removeprefix(f"{method}__").partition("__")
        choice = f"model={model}" + (f" recipe={path.stem}" if paper else "")
        found.append(f"{choice}: {said or 'the defaults above'}, training values in conf/recipe/{path.name}")
    return found


def sources(row: Row) -> list[str]:
    """Papers, equations and sections that the YAML's head and the docstrings name, each once."""
    texts = [row.about, *(inherited_about(row.name))]
    texts += [inspect.getdoc(type(part)) or "" for slot, part in row.objective.parts.items() if shown(row, slot, part)]
    found = [" ".join(match.replace("``", "").split()) for text in texts for match in SOURCE.findall(text)]
    return list(dict.fromkeys(found))


def inherited_about(method: str) -> list[str]:
    return [about(base) for base in bases(method)[1:]]
