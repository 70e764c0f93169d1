"""Truncation: SimPO's, written out a second time, and dropping."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from src.data.prepare import PrepareOptions, truncate


def simpo_truncation(
    prompt: list[int], chosen: list[int], rejected: list[int], max_length: int, max_prompt_length: int
) -> tuple[list[int], list[int], list[int]]:
    """As methods.md section 1 describes it, written out for one pair without bos."""
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer > max_length:
        prompt = prompt[-max_prompt_length:]
    if len(prompt) + longer > max_length:
        chosen, rejected = (side[: max_length - max_prompt_length] for side in (chosen, rejected))
    return prompt, chosen, rejected


IDS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@given(IDS, IDS, IDS, st.integers(3, 40), st.data())
def test_truncation_is_simpos(prompt: list[int], chosen: list[int], rejected: list[int], size: int, data: Any) -> None:
    share = data.draw(st.integers(2, size - 1))
    fitted = truncate(prompt, [chosen, rejected], PrepareOptions(size, share))
    expected = simpo_truncation(prompt, chosen, rejected, size, share)
    assert fitted == (expected[0], [expected[1], expected[2]])


@given(IDS, IDS, st.integers(3, 40), st.data())
def test_a_cut_prompt_keeps_its_bos(prompt: list[int], response: list[int], size: int, data: Any) -> None:
    share = data.draw(st.integers(2, size - 1))
    fitted = truncate([0, *prompt], [response], PrepareOptions(size, share), bos_id=0)
    assert not isinstance(fitted, str)
    cut, (answer,) = fitted
    assert cut[0] == 0
    assert cut[1:] == prompt[len(prompt) - len(cut) + 1 :]
    assert len(cut) + len(answer) <= size
    if len(cut) <= len(prompt):
        assert len(cut) == share


@given(IDS, IDS, IDS, st.integers(3, 40), st.data())
def test_dropping_never_cuts(prompt: list[int], chosen: list[int], rejected: list[int], size: int, data: Any) -> None:
    options = PrepareOptions(size, data.draw(st.integers(2, size - 1)), "drop")
    fitted = truncate(prompt, [chosen, rejected], options)
    fits = len(prompt) <= options.max_prompt_length and len(prompt) + max(len(chosen), len(rejected)) <= size
    assert (fitted == (prompt, [chosen, rejected])) is fits
    assert isinstance(fitted, str) is not fits
