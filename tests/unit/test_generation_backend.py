"""Responses by transformers: the right ids in, the same text in any batch, an end where there should be one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from src.data.pairs import Message, Prompt
from src.errors import UserError
from src.generation.base import Decoding, Response
from src.generation.policy import directory_hash, policy_of_model
from src.generation.transformers_backend import Batch, response_of
from src.model.adapter import add_adapter, save_weights
from src.model.load import model_from_scratch, read_model
from src.schema import AdapterConfig, ModelConfig
from tests.unit.generation_tools import PROMPTS, all_requests, generator_of, tiny_model, tiny_policy

GREEDY = Decoding(n=1, temperatures=(0.0,), seeds=(0,), top_p=1.0, max_new_tokens=24)
SAMPLED = Decoding(n=3, temperatures=(0.8, 1.2), seeds=(13, 21), top_p=0.95, max_new_tokens=24)


def responses(decoding: Decoding, batch_size: int = 8, order: int = 1) -> list[Response]:
    """All responses to PROMPTS, in the order of the requests, whatever order they were asked for in."""
    requests = all_requests(decoding)[::order]
    given = dict(generator_of(tiny_policy(), decoding, batch_size).respond(requests))
    assert sorted(given) == list(range(len(requests)))
    return [given[index] for index in range(len(requests))][::order]


def test_greedy_equals_transformers_own_generation() -> None:
    policy = tiny_policy()
    generator = generator_of(policy, GREEDY)
    model: Any = generator.model()
    given = responses(GREEDY)
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([policy.template.encode_prompt(prompt)])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=list(policy.stop_ids),
            pad_token_id=0,
        )
        texts.append(policy.text_of(whole[0, ids.shape[1] :].tolist()))
    assert [response.text for response in given] == texts
    assert len(set(texts)) > 2


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_the_batch_does_not_matter(batch_size: int) -> None:
    alone = responses(SAMPLED, 4)
    assert responses(SAMPLED, batch_size) == alone
    assert responses(SAMPLED, batch_size, order=-1) == alone
    assert len({response.text for response in alone}) == len(alone)


def test_a_response_alone_is_what_it_is_among_others() -> None:
    everything = responses(SAMPLED)
    requests = all_requests(SAMPLED)
    for index in (0, 5, 13):
        ((_, alone),) = generator_of(tiny_policy(), SAMPLED).respond([requests[index]])
        assert alone == everything[index]


def test_other_seeds_give_other_text_and_samples_of_one_seed_differ() -> None:
    first = responses(replace(SAMPLED, seeds=(13,)))
    assert len({response.text for response in first}) == len(first)
    second = responses(replace(SAMPLED, seeds=(14,)))
    assert all(one.text != other.text for one, other in zip(first, second, strict=True))


def test_stop_tokens_end_responses_and_are_no_part_of_them() -> None:
    """With many tokens that stop, rows leave the batch early, and the others go on as if nothing were."""
    policy = tiny_policy()
    stops = tuple(range(0, 300, 12))
    generator, requests = generator_of(policy, SAMPLED), all_requests(SAMPLED)
    prompts = [policy.template.encode_prompt(request.prompt) for request in requests]
    long, short = (
        dict(Batch(generator.model(), ends, SAMPLED, None).write(prompts, requests))
        for ends in (policy.stop_ids, stops)
    )
    assert len({len(ids) for ids in short.values()}) > 4
    for row, whole in long.items():
        place = next((place for place, token in enumerate(whole) if token in stops), len(whole))
        assert short[row] == whole[: place + 1]
    told = [response_of(replace(policy, stop_ids=stops), ids) for ids in short.values()]
    assert {response.finish_reason for response in told} == {"stop", "length"}
    for ids, response in zip(short.values(), told, strict=True):
        assert response.tokens == len(ids)
        assert (response.finish_reason == "stop") == (ids[-1] in stops)
        assert response.text == policy.text_of(ids[:-1] if ids[-1] in stops else ids)


def test_positions_are_those_of_a_sequence_alone() -> None:
    """A model of learned positions notices a shift, which rotary positions hide."""
    architecture = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = ModelConfig(name="x", attention="sdpa", architecture={**architecture, "initializer_range": 0.4})
    model = model_from_scratch(config, 50, seed=0).train(False)
    prompts = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3, 2]]
    requests = all_requests(SAMPLED, PROMPTS[:1])
    stops = (11, 12, 13, 14)
    together = dict(Batch(model, stops, SAMPLED, None).write(prompts, requests))
    for row, prompt in enumerate(prompts):
        ((_, alone),) = Batch(model, stops, SAMPLED, None).write([prompt], [requests[row]])
        assert together[row] == alone


def test_bfloat16_is_that_of_transformers_to_the_last_bit() -> None:
    from transformers import AutoModelForCausalLM

    policy = policy_of_model(str(tiny_model()), None, [], "bfloat16")
    model: Any = generator_of(policy, GREEDY).model()
    theirs: Any = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.bfloat16, attn_implementation="sdpa")
    ids = torch.arange(200)[None] % 50
    assert torch.equal(model(ids).logits, theirs(ids).logits)
    assert model(ids).logits.dtype == torch.bfloat16
    assert policy.describe()["dtype"] == "bfloat16"


def test_why_a_response_ended() -> None:
    policy = replace(tiny_policy(), stop_ids=(70,))
    assert response_of(policy, [71, 72, 70]) == Response(policy.text_of([71, 72]), "stop", 3)
    assert response_of(policy, [70] + [71] * 23) == Response(policy.text_of([70] + [71] * 23), "length", 24)
    assert response_of(policy, [71] * 23 + [70]).finish_reason == "stop"
    assert response_of(policy, [71] * 3).finish_reason == "length"


def test_a_stop_token_counts_as_written() -> None:
    policy = tiny_policy()
    stop = policy.stop_ids[0]
    assert policy.text_of([*policy.template.tokenizer("ab 1")["input_ids"], stop]) == "ab 1"
    assert policy.text_of([stop]) == ""
    assert policy.text_of([]) == ""


def test_a_response_ends_at_its_limit_or_where_the_context_does() -> None:
    assert {response.tokens for response in responses(replace(GREEDY, max_new_tokens=5))} == {5}
    policy = tiny_policy()
    decoding = replace(SAMPLED, n=1, temperatures=(1.0,), seeds=(3,), max_new_tokens=4096)
    prompt: Prompt = (Message("user", "x" * 200),)
    length = len(policy.template.encode_prompt(prompt))
    generator = generator_of(policy, decoding)
    given = dict(generator.respond(all_requests(decoding, [prompt, PROMPTS[0]])))
    assert given[0].tokens == 256 - length
    assert given[0].finish_reason == "length"
    assert (given[1].tokens or 0) > 256 - length


def test_prompts_that_can_have_no_response_are_told() -> None:
    generator = generator_of(tiny_policy(), GREEDY)
    assert generator.refusal(PROMPTS[0]) is None
    assert generator.refusal((Message("user", "x" * 300),)) == "prompt fills the model's context"
    assert generator.refusal((Message("user", "\ud800"),)) == "not valid Unicode"
    zephyr_like = policy_of_model(str(tiny_model()), "roles", [], "float32")
    assert generator_of(zephyr_like, GREEDY).refusal((Message("user", "x"),)) is None


def test_the_model_reads_the_ids_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    step = Batch.step

    def spy(self: Batch, ids: Any, mask: Any, cache: Any) -> Any:
        if ids.shape[1] > 1:
            seen.extend(row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True))
        return step(self, ids, mask, cache)

    monkeypatch.setattr(Batch, "step", spy)
    responses(GREEDY)
    template = tiny_policy().template
    trained = [template.encode(prompt, "any").prompt_ids for prompt in PROMPTS]
    assert sorted(seen) == sorted(trained)
    own = [
        template.tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in prompt],
            add_generation_prompt=True,
            return_dict=False,
        )
        for prompt in PROMPTS
        if "<|end|>" not in str(prompt)  # which a message may not smuggle in as a token
    ]
    assert [ids for ids in trained if ids in own] == own


def test_a_sampled_model_draws_from_its_own_distribution() -> None:
    """The first token of many samples of one prompt, against the softmax of the model's logits."""
    decoding = Decoding(n=4000, temperatures=(1.0,), seeds=(1,), top_p=1.0, max_new_tokens=1)
    policy = tiny_policy()
    generator = generator_of(policy, decoding, batch_size=2000)
    ids = policy.template.encode_prompt(PROMPTS[0])
    model: Any = generator.model()
    expected = model(torch.tensor([ids])).logits[0, -1].detach().double().softmax(-1)
    batch = Batch(model, policy.stop_ids, decoding, None)
    requests = all_requests(decoding, [PROMPTS[0]])
    drawn = torch.tensor([tokens[0] for _, tokens in batch.write([ids] * 4000, requests)])
    observed = torch.bincount(drawn, minlength=len(expected)).double() / 4000
    common = expected > 0.005
    assert int(common.sum()) > 10
    deviations = (observed - expected)[common] / (expected * (1 - expected) / 4000)[common].sqrt()
    assert float(deviations.abs().max()) < 4.5
    assert float((deviations**2).mean()) < 2


def test_identity_follows_weights_and_template_not_their_place(tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model(), tmp_path / "copy")
    first = tiny_policy().describe()
    assert policy_of_model(str(copy), None, [], "float32").describe() == first
    assert policy_of_model(str(copy), "plain", ["<|end|>"], "float32").describe()["template"] != first["template"]
    assert policy_of_model(str(copy), None, ["a"], "float32").describe()["stop_tokens"] == ["a", "<|end|>"]
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert policy_of_model(str(copy), None, [], "float32").describe()["weights"] != first["weights"]


def test_an_adapter_writes_as_its_merged_weights_and_counts_its_base(tmp_path: Path) -> None:
    config = ModelConfig(name="tiny", path=str(tiny_model()), dtype="float32", attention="sdpa")
    model = read_model(config, str(tiny_model()))
    add_adapter(model, AdapterConfig(name="lora", r=4), seed=0, base=str(tiny_model()))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_weights(model, tmp_path)
    template = tiny_policy().template
    template.tokenizer.save_pretrained(tmp_path)
    policy = policy_of_model(str(tmp_path), None, [], "float32")
    given = dict(generator_of(policy, GREEDY).respond(all_requests(GREEDY)))
    assert [given[index].text for index in range(len(PROMPTS))] != [r.text for r in responses(GREEDY)]
    merged: Any = read_model(config, str(tmp_path), merged=True)
    ids = torch.tensor([template.encode_prompt(PROMPTS[1])])
    whole = merged.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
    )
    assert given[1].text == policy.text_of(whole[0, ids.shape[1] :].tolist())
    before = directory_hash(tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    other = shutil.copytree(tiny_model(), tmp_path / "base")
    (other / "config.json").write_text((other / "config.json").read_text() + " ")
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(other)}))
    assert directory_hash(tmp_path) != before


def test_a_template_that_does_not_begin_the_turn_is_refused(tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model(), tmp_path / "copy")
    silent = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    (copy / "chat_template.jinja").write_text(silent)
    with pytest.raises(UserError, match="no generation prompt"):
        policy_of_model(str(copy), None, [], "float32")
    (copy / "chat_template.jinja").write_text(silent + "{% if add_generation_prompt %}<|assistant|>{% endif %}")
    assert policy_of_model(str(copy), None, [], "float32").stop_ids


def test_models_and_tokens_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stop token 'stop here' is no single token"):
        tiny_policy("stop here")
    with pytest.raises(UserError, match="no such directory"):
        policy_of_model(str(tmp_path / "none"), None, [], "float32")
    with pytest.raises(UserError, match="neither a run directory"):
        policy_of_model(str(tmp_path), None, [], "float32")


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"seeds": ()}, "seeds=\\[\\] is empty"),
        ({"seeds": (1, 2, 3)}, "3, more than the n=2 responses"),
        ({"temperatures": (-0.1,)}, "must be from 0"),
        ({"temperatures": (float("nan"),)}, "must be from 0"),
        ({"temperatures": (0.0,)}, "the same greedy response"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.1}, "top_p=1.1 must be"),
    ],
)
def test_decoding_that_cannot_work(settings: dict[str, Any], fragment: str) -> None:
    with pytest.raises(UserError, match=fragment):
        Decoding(**{"n": 2, "temperatures": (0.8,), "seeds": (1, 2), **settings})


def test_temperatures_and_seeds_are_taken_in_turn() -> None:
    decoding = Decoding(n=5, temperatures=(0.7, 1.0), seeds=(1, 2, 3))
    requests = all_requests(decoding, [PROMPTS[0]])
    assert [(request.sample, request.seed, request.temperature) for request in requests] == [
        (0, 1, 0.7),
        (1, 2, 1.0),
        (2, 3, 0.7),
        (3, 1, 1.0),
        (4, 2, 0.7),
    ]
