"""How answers are drawn: the papers' settings by model, unless the command line says otherwise."""

from __future__ import annotations

import pytest
import yaml

from src.benchmark_schema import DecodingConfig
from src.config import CONF
from src.errors import UserError
from src.evaluation.decoding import decoding_for

BENCHMARKS = ("alpaca_eval", "arena_hard", "mt_bench")
NOTHING = DecodingConfig()


@pytest.mark.parametrize(
    ("model", "temperature"),
    [
        ("llama3_8b_base", 0.9),
        ("llama3_8b_instruct", 0.9),
        ("mistral_7b_base", 0.7),
        ("mistral_7b_instruct", 0.5),
        ("gemma2_9b_instruct", 0.5),
        ("qwen2_5_7b_instruct", 0.5),
        ("princeton-nlp/Llama-3-Base-8B-SFT-SimPO", 0.9),
        ("princeton-nlp/Llama-3-Instruct-8B-SimPO", 0.9),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 0.9),
        ("princeton-nlp/Mistral-7B-Base-SFT-SimPO", 0.7),
        ("alignment-handbook/zephyr-7b-sft-full", 0.7),
        ("mistralai/Mistral-7B-Instruct-v0.2", 0.5),
        ("princeton-nlp/gemma-2-9b-it-SimPO", 0.5),
        ("Qwen/Qwen2.5-7B-Instruct", 0.5),
    ],
)
def test_alpaca_eval_temperatures_of_the_papers(model: str, temperature: float) -> None:
    found = decoding_for("alpaca_eval", model, NOTHING)
    assert found.temperature == temperature
    assert found.at(None).temperatures == (temperature,)
    assert found.top_p == 1.0
    assert found.max_new_tokens in (2048, 4096)


def test_arena_hard_is_greedy_and_mt_bench_by_category() -> None:
    arena = decoding_for("arena_hard", "llama3_8b_instruct", NOTHING)
    assert (arena.temperature, arena.max_new_tokens) == (0.0, 4096)
    talk = decoding_for("mt_bench", "llama3_8b_instruct", NOTHING)
    assert talk.max_new_tokens == 1024
    assert talk.at(0.7).temperatures == (0.7,)
    assert talk.at(0.1).n == 1


def test_the_command_line_goes_first_and_sources_say_so() -> None:
    given = DecodingConfig(temperature=0.0, max_new_tokens=5, seed=3)
    found = decoding_for("alpaca_eval", "unknown", given, "princeton-nlp/gemma-2-9b-it-SimPO")
    assert (found.temperature, found.top_p, found.max_new_tokens, found.seed) == (0.0, 1.0, 5, 3)
    assert found.sources["temperature"] == "decoding.temperature on the command line"
    assert "gemma-2-9b-it-SimPO" in found.sources["top_p"]
    assert found.at(None).seeds == (3,)


def test_a_model_that_nobody_measured_takes_the_default() -> None:
    assert decoding_for("alpaca_eval", "pythia_2_8b", NOTHING).temperature == 0.7
    with pytest.raises(UserError, match="no paper's decoding is written down for nothing"):
        decoding_for("nothing", "tiny", NOTHING)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_entry_is_whole_and_of_a_model_that_exists(benchmark: str) -> None:
    content = yaml.safe_load((CONF / "decoding" / f"{benchmark}.yaml").read_text())
    for name, entry in {"default": content["default"], **content["models"]}.items():
        assert {"temperature", "top_p", "max_new_tokens", "source"} == set(entry) - {"names"}
        assert name == "default" or (CONF / "model" / f"{name}.yaml").is_file()
        assert all(pattern == pattern.lower() for pattern in entry.get("names", ()))
