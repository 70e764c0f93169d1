"""The toy world's scorer on hand-written prompts and responses."""

import pytest

from src.data.pairs import Message, Prompt
from src.data.toy.scorer import LENGTH_BIAS, judge_preference, score_response
from src.errors import UserError


def ask(*turns: str) -> Prompt:
    roles = ("user", "assistant", "user")
    return tuple(Message(role, text) for role, text in zip(roles, turns, strict=False))


def grades(prompt: Prompt, response: str) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in score_response(prompt, response).aspects.values())


LIST = ask("List three fruits except pear as bullets.")
SORT = ask("Sort 9, 2, 14, 5 from low to high separated by commas.")
NUMBERED = ask("Sort dog, axe, tea from Z to A as a numbered list.")
SLASHES = ask("Write dog, van, red joined by slashes.")
BRACKETS = ask("Write dog, van backwards in brackets.")
DASHES = ask("Write dog, van, red joined by dashes.")
SUM = ask("What is 7 + 5? Reply with the number only.")
EQUATION = ask("What is 3 x 4? Reply with an equation.")
STORY = ask("Ana has 9 coins and loses 4. How many now? Reply with a sentence.")
LETTER = ask("Which of these is in fruits? A) dog B) plum C) van D) red Reply with the letter only.")
BOTH = ask("Which of these is in fruits? A) dog B) plum C) van D) red Reply with the letter and the word.")
REVERSE = ask("List two tools separated by commas.", "axe, saw", "Now in reverse order as bullets.")
FIRST = ask("Sort 9, 2, 5 from low to high as bullets.", "- 9\n- 5", "Now only the first two separated by commas.")
THEN = ask("What is 7 + 5? Reply with the number only.", "12", "Now take away 2. Reply with the number only.")


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        (LIST, "- apple\n- plum\n- fig"),
        (LIST, "* Apple\n* Plum\n* Fig"),
        (SORT, "2, 5, 9, 14"),
        (NUMBERED, "1. tea\n2. dog\n3. axe"),
        (SLASHES, "dog / van/red"),
        (BRACKETS, "[ van ] [dog]"),
        (DASHES, "dog - van - red"),
        (SUM, "12"),
        (EQUATION, "3 x 4 = 12"),
        (STORY, "The answer is 5 coins."),
        (LETTER, "B"),
        (BOTH, "B) plum"),
        (REVERSE, "- saw\n- axe"),
        (FIRST, "2, 5"),
        (THEN, "10"),
    ],
)
def test_right_complete_concise_answers_get_full_marks(prompt: Prompt, response: str) -> None:
    assert grades(prompt, response) == (5, 5, 5, 5)
    assert score_response(prompt, response).overall == 5


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        (LIST, "- apple\n- plum", (5, 3.667, 5, 5)),  # one of three missing
        (LIST, "- apple\n- dog\n- fig", (3.667, 3.667, 5, 5)),  # another category
        (LIST, "- apple\n- pear\n- fig", (3.667, 3.667, 5, 5)),  # the excluded word
        (LIST, "- apple\n- apple\n- fig", (3.667, 3.667, 5, 5)),  # said twice
        (LIST, "- fig\n- plum\n- mango\n- lime\n- lemon", (5, 3.667, 5, 4.778)),  # one too many, and one no item
        (LIST, "apple, plum, fig", (5, 5, 1, 5)),  # another layout
        (LIST, "- apple\nplum\nfig", (5, 5, 2.333, 5)),
        (SORT, "2, 9, 5, 14", (4, 5, 5, 5)),  # longest run in order: three of four
        (SORT, "2, 5 9, 14", (5, 5, 3.667, 5)),
        (SORT, "14", (5, 2, 3, 5)),
        (NUMBERED, "1. tea\n3. dog\n2. axe", (5, 5, 2.333, 5)),
        (SLASHES, "dog / van red", (5, 5, 3, 5)),
        (BRACKETS, "[ van ] dog", (5, 5, 3, 5)),
        (SUM, "13", (2.6, 2.6, 5, 5)),  # near miss
        (SUM, "40", (1, 1, 5, 5)),
        (SUM, "7 + 5 = 12", (5, 5, 1, 4.778)),
        (EQUATION, "= 12", (5, 1, 3, 5)),
        (STORY, "The answer is 5.", (5, 3, 5, 5)),
        (STORY, "5", (5, 3, 1, 5)),
        (LETTER, "plum", (5, 3, 1, 5)),
        (LETTER, "B) plum", (5, 5, 1, 5)),
        (LETTER, "C", (1, 1, 5, 5)),
        (BOTH, "B", (5, 3, 1, 5)),
        (BOTH, "B) dog", (3, 3, 5, 5)),  # letter and word contradict each other
        (REVERSE, "- axe\n- saw", (3, 5, 5, 5)),
        (THEN, "12", (2.2, 2.2, 5, 5)),  # the answer to the first question
    ],
)
def test_partly_right_answers_lose_points_where_they_fail(
    prompt: Prompt, response: str, expected: tuple[float, ...]
) -> None:
    assert grades(prompt, response) == expected


@pytest.mark.parametrize("response", ["", "   \n", "I do not know.", "<unk> ## **", "colourless ideas sleep"])
@pytest.mark.parametrize("prompt", [LIST, SORT, SUM, LETTER, THEN])
def test_responses_without_an_answer_are_unparsed(prompt: Prompt, response: str) -> None:
    score = score_response(prompt, response)
    assert (score.parsed, score.overall, set(score.aspects.values())) == (False, 1.0, {1.0})


def test_only_concision_suffers_from_words_around_the_answer() -> None:
    long = "Sure, here is the answer:\n2, 5, 9, 14\n" + "I looked at each part of the question in turn. " * 3
    correctness, completeness, layout, concision = grades(SORT, long)
    assert (correctness, completeness, layout) == (5, 5, 5)
    assert concision < 3
    assert grades(SORT, long * 3)[3] == 1


def test_markdown_is_read_through() -> None:
    assert grades(LIST, "## Answer\n- **apple**\n- **plum**\n- **fig**") == (5, 5, 5, 5)
    assert grades(SUM, "## Answer\n**12**") == (5, 5, 5, 5)


def test_a_follow_up_refers_to_the_items_of_the_answer_or_to_the_first_question() -> None:
    lost = ask("List two tools separated by commas.", "No idea.", "Now in reverse order as bullets.")
    assert grades(lost, "- saw\n- axe") == (5, 5, 5, 5)
    assert grades(lost, "- dog\n- axe")[0] == 3


@pytest.mark.parametrize(
    "prompt",
    [
        ask("How are you?"),
        ask("List six fruits as bullets."),
        ask("List two planets as bullets."),
        ask("Which of these is in fruits? A) dog B) cat C) van D) red Reply with the letter only."),
        ask("What is 7 + 5? Reply with the number only.", "12", "Now in reverse order as bullets."),
        ask("What is 7 + 5? Reply with the number only.", "12"),
    ],
)
def test_prompts_of_another_world_are_refused(prompt: Prompt) -> None:
    with pytest.raises(UserError, match="not a prompt of the toy world"):
        score_response(prompt, "12")


def test_judge_is_symmetric_and_length_bias_turns_it() -> None:
    short, long = "2, 5, 9, 14", "Sure, here it is:\n2, 5, 9, 14\nI looked at each part in turn.\nI hope this helps."
    assert 0.8 < judge_preference(SORT, short, long) < 1
    assert judge_preference(SORT, short, long) + judge_preference(SORT, long, short) == pytest.approx(1)
    assert judge_preference(SORT, short, long, length_bias=LENGTH_BIAS) < 0.5
    assert judge_preference(SORT, short, long, length_bias=LENGTH_BIAS, temperature=0) == 0
    assert judge_preference(SORT, short, long, temperature=0) == 1
    assert judge_preference(SORT, short, short, temperature=0) == 0.5
