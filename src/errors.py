"""The one exception that users see: their mistake in our words, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user asked for cannot work.

    The message says what was given, why it cannot work, and what to write instead.
    Entry points print it and exit with ``exit_code``; they never show a traceback for it.
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Problems(UserError):  # noqa: N818 - reads as what it is
    """Several user errors found at once; the message lists them, numbered."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        noun = "problem" if len(problems) == 1 else "problems"
        lines = [f"{len(problems)} {noun} found:"]
        lines += [f"  {number}. {text}" for number, text in enumerate(problems, 1)]
        super().__init__("\n".join(lines))
