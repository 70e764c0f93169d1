"""Reward models and pairwise rankers, each a random model of a few thousand parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)
from transformers.modeling_outputs import ModelOutput

from src.annotation.base import Candidates, Score, Scorer, every_item
from src.annotation.pair_ranker import PairRanker, filled, mean_wins, sigmoid
from src.annotation.reward_model import RewardModel
from src.data.pairs import Message
from src.data.templates import ChatTemplate
from src.errors import UserError
from tests.unit.annotation_tools import candidates, save_classifier, shard_of


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("ranker"), kind="deberta-v2")


def scores(scorer: Scorer, shard: list[Candidates]) -> list[Score]:
    """Of every response, in order, whatever the batches."""
    score = scorer.open(Path("nowhere"))
    found = {}
    for batch in scorer.batches(shard):
        found |= dict(zip(batch, score(shard, batch), strict=True))
    return [found[item] for item in every_item(shard)]


def values(scorer: Scorer, shard: list[Candidates]) -> list[float]:
    found = [score.value for score in scores(scorer, shard)]
    assert None not in found
    return [value for value in found if value is not None]


# --- reward models ----------------------------------------------------------------------------------------------------


def by_hand(path: str, item: Candidates, place: int) -> float:
    """One response alone, as transformers itself renders and scores it."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    turns = [{"role": message.role, "content": message.content} for message in item.prompt]
    turns.append({"role": "assistant", "content": item.responses[place].text})
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        return float(model(ids).logits[0, 0])


def test_scores_are_those_of_each_conversation_alone(reward_model: str) -> None:
    shard = shard_of(3)
    found = values(RewardModel(reward_model, batch_size=5), shard)
    wanted = [by_hand(reward_model, shard[prompt], place) for prompt, place in every_item(shard)]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert max(found) - min(found) > 0.1


@pytest.mark.parametrize("kind", ["llama", "deberta-v2"])
def test_batch_size_changes_nothing(tmp_path: Path, kind: str) -> None:
    path = save_classifier(tmp_path, kind=kind)
    shard = shard_of(4)
    alone = values(RewardModel(path, batch_size=1), shard)
    assert max(alone) - min(alone) > 0.01
    for size in (2, 5, 64):
        assert values(RewardModel(path, batch_size=size), shard) == pytest.approx(alone, abs=1e-5)


def test_batches_hold_every_response_once_with_like_lengths(reward_model: str) -> None:
    shard = shard_of(7)
    batches = RewardModel(reward_model, batch_size=4).batches(shard)
    assert sorted(item for batch in batches for item in batch) == every_item(shard)
    lengths = [
        len(shard[prompt].prompt[0].content) + len(shard[prompt].responses[place].text)
        for batch in batches
        for prompt, place in batch
    ]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("labels", [2, 5])
def test_a_model_with_several_outputs_is_refused(tmp_path: Path, labels: int) -> None:
    path = save_classifier(tmp_path, labels=labels)
    with pytest.raises(UserError, match=rf"has {labels} outputs \(LABEL_0, LABEL_1.*num_labels=1.*'score'"):
        scores(RewardModel(path), shard_of(1))


class GatedConfig(LlamaConfig):
    model_type = "gated-for-test"


@dataclass
class GatedOutput(ModelOutput):
    logits: torch.Tensor | None = None
    score: torch.Tensor | None = None


class GatedBody(LlamaModel):
    """The body that a classifier of that configuration is built on."""

    config_class = GatedConfig


class Gated(LlamaForSequenceClassification):
    """Five rewards and one ``score`` made of them, as ArmoRM's output has."""

    config_class = GatedConfig

    def forward(self, *args: Any, **options: Any) -> GatedOutput:
        logits = super().forward(*args, **options).logits
        return GatedOutput(logits=logits, score=logits.softmax(1).mul(logits).sum(1))


def test_the_score_of_an_output_comes_before_its_logits(tmp_path: Path) -> None:
    AutoConfig.register("gated-for-test", GatedConfig, exist_ok=True)
    AutoModel.register(GatedConfig, GatedBody, exist_ok=True)
    AutoModelForSequenceClassification.register(GatedConfig, Gated, exist_ok=True)
    path = save_classifier(tmp_path, labels=5, kind="gated-for-test")
    shard = shard_of(2)
    found = values(RewardModel(path, batch_size=3), shard)
    assert len(set(found)) == len(found)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    turns = [{"role": "user", "content": shard[1].prompt[0].content}]
    turns.append({"role": "assistant", "content": shard[1].responses[2].text})
    with torch.no_grad():
        output = model(tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False))
    assert found[5] == pytest.approx(float(output.score), abs=1e-5)


def gated_by_hand(path: str, item: Candidates, place: int) -> float:
    """ArmoRM's score in numpy, but for the body's hidden states."""
    weights = {name: value.double().numpy() for name, value in load_file(f"{path}/model.safetensors").items()}
    tokenizer = AutoTokenizer.from_pretrained(path)
    body = LlamaModel(AutoConfig.from_pretrained(path))
    missing, _ = body.load_state_dict(
        {
            name.removeprefix("model."): torch.tensor(value)
            for name, value in weights.items()
            if name.startswith("model.")
        }
    )
    assert missing == []
    turns = [{"role": message.role, "content": message.content} for message in item.prompt]
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
    before_header = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    turns.append({"role": "assistant", "content": item.responses[place].text})
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        hidden = body(ids).last_hidden_state[0].double().numpy()
    gate = hidden[before_header]
    layers = sum(name.startswith("gating.layers") for name in weights) // 2
    for layer in range(layers):
        gate = weights[f"gating.layers.{layer}.weight"] @ gate + weights[f"gating.layers.{layer}.bias"]
        gate = np.maximum(gate, 0) if layer < layers - 1 else np.exp(gate / 10)
    gate = weights["gating.logit_scale"][0] * gate / gate.sum()
    rewards = hidden[-1] @ weights["regression_layer.weight"].T @ weights["reward_transform_matrix"]
    return float(gate @ rewards)


GATED = {"num_objectives": 5, "gating_hidden_dim": 8, "gating_n_hidden": 2, "template": "llama3"}


def test_armorms_kind_is_read_and_scored_as_its_paper_says(tmp_path: Path) -> None:
    path = save_classifier(tmp_path, kind="gated", **GATED)
    shard = shard_of(2)
    wanted = [gated_by_hand(path, shard[prompt], place) for prompt, place in every_item(shard)]
    assert max(wanted) - min(wanted) > 0.1
    for size in (1, 4):
        assert values(RewardModel(path, batch_size=size), shard) == pytest.approx(wanted, abs=1e-4)


def test_armorms_gate_needs_the_header_of_its_template(tmp_path: Path) -> None:
    path = save_classifier(tmp_path, kind="gated", **GATED)
    with pytest.raises(UserError, match=r"holds no '<\|start_header_id\|>assistant.*leave scorer\.template at null"):
        scores(RewardModel(path, template="plain"), shard_of(1))


def test_armorm_without_a_part_is_refused(tmp_path: Path) -> None:
    path = save_classifier(tmp_path, kind="gated", **GATED)
    weights = load_file(f"{path}/model.safetensors")
    del weights["gating.layers.1.bias"]
    save_file(weights, f"{path}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks gating\.layers\.1\.bias: these weights would be random"):
        scores(RewardModel(path), shard_of(1))


def test_a_language_model_is_no_reward_model(tmp_path: Path) -> None:
    path = save_classifier(tmp_path, kind="causal")
    with pytest.raises(UserError, match=r"lacks score.weight: these weights would be random"):
        scores(RewardModel(path), shard_of(1))


def test_what_is_nowhere_or_no_model_is_said_with_the_scorers_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scorer\.path=/no/such/folder: no such folder"):
        RewardModel("/no/such/folder").open(tmp_path)
    save_classifier(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"scorer\.path=.* is no sequence classifier that can be loaded"):
        RewardModel(str(tmp_path)).open(tmp_path)
    with pytest.raises(UserError, match=r"scorer\.batch_size=0 cannot work"):
        RewardModel("x", batch_size=0)


def test_a_tokenizer_without_template_needs_a_named_one(tmp_path: Path) -> None:
    path = save_classifier(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match=r"has no chat template; set scorer\.template"):
        RewardModel(path).open(tmp_path)
    assert len(scores(RewardModel(path, template="chatml"), shard_of(1))) == 3


def test_what_is_too_long_has_no_score_and_says_so(reward_model: str) -> None:
    shard = [candidates("short", "long " * 30, "brief")]
    found = scores(RewardModel(reward_model, max_length=120), shard)
    assert [score.reason for score in found] == ["", "longer than max_length", ""]
    assert found[1].value is None
    assert found[0].value == pytest.approx(scores(RewardModel(reward_model), shard)[0].value, abs=1e-5)
    own = [candidates("short", "long " * 120)]
    assert [score.value is None for score in scores(RewardModel(reward_model), own)] == [False, True]


def test_special_tokens_in_a_response_stay_text(reward_model: str) -> None:
    """Otherwise a response could end its own turn and praise itself in the next."""
    template = ChatTemplate(AutoTokenizer.from_pretrained(reward_model))
    plain, sly = (
        template.encode_conversation((*candidates().prompt, Message("assistant", text)))
        for text in ("yes", "yes<|im_end|>")
    )
    assert sly.count(template.stop_id) == plain.count(template.stop_id) == 2
    assert len(sly) == len(plain) + len("<|im_end|>")


def test_identity_is_of_the_weights_and_not_of_the_place(tmp_path: Path) -> None:
    one, same, other = (save_classifier(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert RewardModel(one).describe() == RewardModel(same, batch_size=3).describe()
    assert RewardModel(one).describe() != RewardModel(other).describe()
    assert RewardModel(one).describe() != RewardModel(one, max_length=9).describe()
    assert RewardModel("some/model", revision="r").describe()["weights"] == {"hub_id": "some/model", "revision": "r"}


# --- pairwise rankers -------------------------------------------------------------------------------------------------


def logit_by_hand(path: str, text: str) -> float:
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    with torch.no_grad():
        return float(model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).logits[0, 0])


def test_score_is_the_mean_win_over_both_orders(ranker: str) -> None:
    item = candidates("one answer", "another one", "a third, much longer answer than those")
    found = values(PairRanker(ranker, batch_size=4), [item])
    question, texts = item.prompt[0].content, [response.text for response in item.responses]

    def win(a: int, b: int) -> float:
        there = logit_by_hand(ranker, f"<|source|>{question}<|candidate1|>{texts[a]}<|candidate2|>{texts[b]}")
        back = logit_by_hand(ranker, f"<|source|>{question}<|candidate1|>{texts[b]}<|candidate2|>{texts[a]}")
        return (1 / (1 + math.exp(-there)) + 1 / (1 + math.exp(back))) / 2

    wanted = [(win(a, b) + win(a, c)) / 2 for a, b, c in ((0, 1, 2), (1, 0, 2), (2, 0, 1))]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert math.fsum(found) == pytest.approx(1.5)
    assert max(found) - min(found) > 1e-3


def test_order_of_responses_and_batch_size_change_nothing(ranker: str) -> None:
    texts = ["one answer", "another one", "a third, much longer answer than those", "no"]
    straight = values(PairRanker(ranker, batch_size=1), [candidates(*texts)])
    reverse = values(PairRanker(ranker, batch_size=7), [candidates(*texts[::-1])])
    assert reverse[::-1] == pytest.approx(straight, abs=1e-5)


def test_equal_texts_draw_and_a_lone_response_has_no_score(ranker: str) -> None:
    assert values(PairRanker(ranker), [candidates("same", "same")]) == [0.5, 0.5]
    same, _, also = values(PairRanker(ranker), [candidates("same", "other", "same")])
    assert same == pytest.approx(also)
    (lone,) = scores(PairRanker(ranker), [candidates("alone")])
    assert lone == Score(None, "the only response to its prompt")


def test_long_texts_are_cut_from_their_end(ranker: str) -> None:
    long, short = ["abcdef" * 40, "xyz" * 30], ["abcdef"[:5], "xyzxy"]
    cut = PairRanker(ranker, max_response_length=5)
    assert values(cut, [candidates(*long)]) == pytest.approx(values(cut, [candidates(*short)]))
    with pytest.raises(UserError, match=r"takes 878 tokens.*at most 512; lower scorer\.max_prompt_length"):
        scores(PairRanker(ranker), [candidates("a" * 500, "b" * 500)])


def test_a_layout_without_a_place_is_refused() -> None:
    with pytest.raises(UserError, match=r"no place for \{second\}"):
        PairRanker("x", layout="{prompt} {first}")
    with pytest.raises(UserError, match=r"scorer\.max_response_length=0"):
        PairRanker("x", max_response_length=0)
    assert filled("{prompt}|{first}|{second}", "{first}", "{second}", "b") == "{first}|{second}|b"


def test_mean_wins_and_sigmoid_by_hand() -> None:
    assert mean_wins([[0.5, 1.0, 0.25], [0.0, 0.5, 0.5], [0.75, 0.5, 0.5]]) == [0.625, 0.25, 0.625]
    assert [sigmoid(-1000.0), sigmoid(0.0), sigmoid(1000.0)] == [0.0, 0.5, 1.0]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
