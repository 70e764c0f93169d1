"""lm-eval's tasks on a model: equal to lm-eval called directly, restartable, with the model's own chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml

pytest.importorskip("lm_eval")

from src.evaluation.harness import model as harness_model
from src.evaluation.harness.package import guest, task_folder
from tests.entry import assert_says, refused
from tests.evaluation.harness_tools import PROGRAM, harness, made_up_files, printed, samples_of, small_model
from tests.support import ROOT

SHARED = ROOT.parent / "shared" / "data" / "lm_eval"
TASKS = "tasks=[gsm8k,arc_challenge]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and what the module's first call wrote."""
    folder = tmp_path_factory.mktemp("lm-harness")
    made_up_files(folder / "data")
    small_model(folder)
    return folder


def asked(place: Path, *more: str, shots: int = 2) -> list[str]:
    """What the module's calls ask for: two documents of each task."""
    where = [f"checkpoint={place / 'model'}", f"tasks_from={place / 'data'}"]
    return [*where, TASKS, "max_items=2", f"num_fewshot={shots}", *more]


@pytest.fixture(scope="module")
def first(place: Path) -> dict[str, Any]:
    """What the first call printed."""
    (scores,) = printed(harness(place, *asked(place)))
    return scores


def called_directly(
    model: Path, folder: Path, data: Path, *, limit: int | None, shots: Mapping[str, int | None]
) -> Any:
    """``lm_eval.simple_evaluate`` on task files that include lm-eval's own."""
    from lm_eval import evaluator, simple_evaluate
    from lm_eval.tasks import TaskManager

    packaged = {"gsm8k": "gsm8k/gsm8k.yaml", "arc_challenge": "arc/arc_challenge.yaml"}
    folder.mkdir()
    found = {}
    for task, path in packaged.items():
        files = {split: str(next(data.glob(f"{task}_{split}.jsonl*"))) for split in ("train", "test")}
        own = {
            "include": str(task_folder() / path),
            "task": f"direct_{task}",
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(own))
    with guest(str(folder / "cache")), mock.patch.object(evaluator, "add_env_info"):  # which takes seconds
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        for task in packaged:
            found[task] = simple_evaluate(
                model="hf",
                model_args={"pretrained": str(model)},
                device="cpu",
                tasks=[f"direct_{task}"],
                num_fewshot=shots[task],
                task_manager=manager,
                limit=limit,
            )
    return found


def assert_equal(scores: dict[str, Any], direct: Any, place: Path) -> None:
    """Every metric, standard error, prompt and answer."""
    for task, found in direct.items():
        results = found["results"][f"direct_{task}"]
        compared = 0
        for key, value in results.items():
            metric, comma, kept = key.partition(",")
            if comma:
                stderr = metric.endswith("_stderr")
                name = "/".join([task, metric.removesuffix("_stderr"), *([kept] if kept != "none" else [])])
                assert scores[f"{name}_stderr" if stderr else name] == (None if value == "N/A" else value), key
                compared += 1
        assert compared == 4
        rows = samples_of(place / "evaluations", task)
        expected = found["samples"][f"direct_{task}"]
        assert len(rows) == len(expected)
        for row, other in zip(rows, expected, strict=True):
            assert row["arguments"] == json.loads(json.dumps(other["arguments"]))
            assert row["resps"] == json.loads(json.dumps(other["resps"]))


def test_equals_lm_eval_called_directly(place: Path, first: dict[str, Any], tmp_path: Path) -> None:
    shots = {"gsm8k": 2, "arc_challenge": 2}
    direct = called_directly(place / "model", tmp_path / "direct", place / "data", limit=2, shots=shots)
    assert_equal(first, direct, place)
    assert len({str(row["resps"]) for row in samples_of(place / "evaluations", "gsm8k")}) == 2  # answers that vary


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data pack with GSM8K and ARC is not beside the repository")
def test_equals_lm_eval_on_the_real_files(place: Path, tmp_path: Path) -> None:
    outcome = harness(tmp_path, f"checkpoint={place / 'model'}", TASKS, f"tasks_from={SHARED}", "max_items=1")
    (scores,) = printed(outcome)
    shots = {"gsm8k": None, "arc_challenge": None}
    direct = called_directly(place / "model", tmp_path / "direct", SHARED, limit=1, shots=shots)
    assert_equal(scores, direct, tmp_path)
    assert scores["counts"]["gsm8k/truncated"] == 1
    assert "lost their beginning" in " ".join(scores["notes"])
    assert "only the first 1 documents" in " ".join(scores["notes"])


def test_record_names_versions_settings_and_sources(place: Path, first: dict[str, Any]) -> None:
    (path,) = (place / "records").glob("lm_harness__*.json")
    record = json.loads(path.read_text())
    assert record["data"]["pairs"] == 4
    assert record["settings"]["lm_eval"].startswith("0.4")
    assert record["settings"]["tasks"]["gsm8k"]["num_fewshot"] == {"gsm8k": 2}
    assert record["details"]["versions"] == {"gsm8k": 3.0, "arc_challenge": 1.0}
    assert set(record["sources"]) == {
        *("samples/gsm8k", "samples/arc_challenge", "data/gsm8k/train", "data/gsm8k/test"),
        *("data/arc_challenge/train", "data/arc_challenge/test"),
    }
    metric = record["metrics"]["arc_challenge/acc"]
    stderr = record["metrics"]["arc_challenge/acc_stderr"]["value"]
    assert metric["high"] - metric["low"] == pytest.approx(2 * 1.96 * stderr)
    assert metric["n"] == 2
    assert first["counts"]["gsm8k/documents"] == 2


def test_a_finished_task_is_not_run_again(place: Path, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was opened")

    monkeypatch.setattr(harness_model, "open_model", never)
    outcome = harness(place, *asked(place))
    assert printed(outcome) == [first]
    assert outcome.err.count("finished before") == 4
    dry = harness(place, *asked(place, "dry_run=true", shots=1))
    assert (dry.code, dry.out) == (0, "")
    assert_says(
        dry.err, "gsm8k: 2 documents, 2 requests", "at most 512 to write", "arc_challenge: 2 documents, 7 requests"
    )


def test_an_interrupted_run_goes_on_and_gives_the_same(
    place: Path, first: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.model import CacheHook

    answered: list[Any] = []
    original = CacheHook.add_partial

    def interrupted(hook: Any, name: str, request: Any, answer: Any) -> None:
        if len(answered) == 1:
            raise KeyboardInterrupt
        answered.append(request)
        original(hook, name, request, answer)

    monkeypatch.setattr(CacheHook, "add_partial", interrupted)
    assert harness(tmp_path, *asked(place)).code == 130
    before = answered.copy()
    answered[:] = [None] * 10  # never again

    def counted(hook: Any, name: str, request: Any, answer: Any) -> None:
        answered.append(request)
        original(hook, name, request, answer)

    monkeypatch.setattr(CacheHook, "add_partial", counted)
    assert printed(harness(tmp_path, *asked(place))) == [first]
    after = answered[10:]
    assert len(before) == 1
    assert len(before) + len(after) == 2 + 7
    assert not {str(request) for request in before} & {str(request) for request in after}
    for task in ("gsm8k", "arc_challenge"):
        assert samples_of(tmp_path, task) == samples_of(place / "evaluations", task)


def test_a_log_that_was_changed_is_made_anew(place: Path, first: dict[str, Any]) -> None:
    (path,) = (place / "evaluations").rglob("gsm8k.samples.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert printed(harness(place, *asked(place))) == [first]
    assert path.read_bytes() == whole


def test_toy_tasks_run_under_the_models_own_template(place: Path, tmp_path: Path) -> None:
    (scores,) = printed(harness(tmp_path, f"checkpoint={place / 'model'}", "benchmark=toy", "max_items=6"))
    assert set(scores) >= {"toy_arithmetic/exact_match/last-number", "toy_choice/acc", "toy_choice/acc_norm"}
    (row, *_) = samples_of(tmp_path, "toy_choice")
    assert row["arguments"][0][0].startswith("<|bos|><|user|>Which of these is in")
    assert row["arguments"][0][0].endswith("<|assistant|>")
    assert row["arguments"][0][1][:1].strip()


@pytest.fixture(scope="module")
def chat(place: Path) -> Iterator[Any]:
    from src.generation.policy import policy_of_model

    policy = policy_of_model(str(place / "model"), None, [], "float32")
    with guest(str(place / "cache")):
        yield harness_model.open_model(policy, backend="hf", device="cpu", batch_size=4, chat=True)


def test_ids_under_a_template_are_those_of_training(chat: Any) -> None:
    from src.data.pairs import Message

    turns = [
        {"role": "user", "content": "A kettle <|end|> costs"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "and two?"},
    ]
    prompt = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    text = chat.apply_chat_template(turns)
    template = chat.policy.template
    encoded = template.encode(prompt, "the copper")
    assert chat.tok_encode(text) == encoded.prompt_ids
    assert chat.tok_encode(text) != template.tokenizer(text)["input_ids"]  # <|end|> in the question is text
    assert chat._encode_pair(text, "the copper") == (encoded.prompt_ids, encoded.response_ids[:-1])
    begun = chat.apply_chat_template([*turns, {"role": "assistant", "content": "the "}], add_generation_prompt=False)
    known, rest = chat._encode_pair(begun, "copper")
    assert known + rest == encoded.prompt_ids + encoded.response_ids[:-1]
    ids, mask = chat.tok_batch_encode([text, chat.apply_chat_template(turns[:1])], left_truncate_len=20)
    assert ids.shape == mask.shape == (2, min(20, len(encoded.prompt_ids)))
    assert ids[0].tolist() == encoded.prompt_ids[-20:]


def test_a_response_ends_at_a_stop_token_of_the_model(chat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.instance import Instance

    text = chat.apply_chat_template([{"role": "user", "content": "A maple costs 3 coins."}])
    options = {"until": [], "do_sample": False, "max_gen_toks": 12}

    def written() -> str:
        return str(chat.generate_until([Instance("generate_until", {}, (text, options), 0)], disable_tqdm=True)[0])

    free = written()
    settings = chat.model.generation_config
    assert settings.eos_token_id == list(chat.policy.stop_ids) == [chat.tokenizer.convert_tokens_to_ids("<|end|>")]
    monkeypatch.setattr(settings, "eos_token_id", list(range(len(chat.tokenizer))))
    assert len(written()) < len(free)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_tasks_and_files_are_refused_before_the_model_is_read(place: Path, tmp_path: Path) -> None:
    where = [f"checkpoint={place / 'model'}", f"output_root={tmp_path}", f"cache_root={place / 'cache'}"]
    incomplete = made_up_files(tmp_path / "incomplete")
    (incomplete / "gsm8k_test.jsonl").unlink()
    local = f"tasks_from={incomplete}"
    assert_says(refused(PROGRAM, *where, "tasks=gsm8k", local), "incomplete/gsm8k_test.jsonl (or .jsonl.gz) is not")
    assert_says(refused(PROGRAM, *where, "tasks=[open_llm_v1]", local), "nothing for hellaswag", "gsm8k")
    assert_says(refused(PROGRAM, *where), "tasks has no value", "open_llm_v1")
    assert_says(refused(PROGRAM, *where, "tasks=[amapo_script,open_llm_v1]"), "arc_challenge twice", "25 examples")
    assert_says(refused(PROGRAM, *where, "benchmark=toy", "tasks=[gsm8k]"), "benchmark=toy has toy_arithmetic")
    assert_says(refused(PROGRAM, *where, "tasks=gsm8k", "seeds=[1]"), "four whole numbers")
    assert_says(refused(PROGRAM, *where, "tasks=gsm8k", "batch_size=0"), "at least 1, or auto")
    assert_says(refused(PROGRAM, *where, "tasks=gsm8k", "samples=x"), "add stage=score")
    assert_says(
        refused(PROGRAM, *where, "tasks=gsm8k", f"tasks_from={place / 'data'}", "backend=vllm"), "not installed"
    )


def test_own_yaml_files_and_a_model_too_short_for_the_answers(place: Path, tmp_path: Path) -> None:
    data = place / "data"
    files = {split: str(data / f"gsm8k_{split}.jsonl") for split in ("train", "test")}
    own = {
        "include": str(task_folder() / "gsm8k" / "gsm8k.yaml"),
        "task": "short_sums",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4},
    }
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "short.yaml").write_text(yaml.safe_dump(own))
    model = small_model(tmp_path, context=192)
    where = [f"checkpoint={model}", "num_fewshot=0", "max_items=2", "batch_size=2"]
    (scores,) = printed(harness(tmp_path, *where, "tasks=short_sums", f"tasks_from={tmp_path / 'own'}"))
    assert scores["counts"]["short_sums/documents"] == 2
    outcome = harness(tmp_path, *where, "tasks=gsm8k", f"tasks_from={data}")
    assert outcome.code == 2
    assert_says(outcome.err, "gsm8k lets answers have 256 tokens, but the model takes 192")
