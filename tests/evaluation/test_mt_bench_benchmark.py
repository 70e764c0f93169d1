"""MT-Bench's questions to the judge, byte for byte; its files, and the same benchmark on the toy world."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest

from src.benchmark_schema import MTBenchConfig
from src.data.toy.benchmarks import as_prompt
from src.data.toy.scorer import score_response
from src.errors import UserError
from src.evaluation.fetch import fetched
from src.evaluation.judges.base import Judged, Opinion
from src.evaluation.mtbench.benchmark import MTBench, mt_bench, spoken, toy
from src.evaluation.mtbench.files import Question, read_answers, read_questions, read_references
from src.evaluation.mtbench.prompts import OWN, read_prompts
from src.evaluation.mtbench.ratings import parse_rating
from src.generation.client import Completion
from tests.entry import assert_says

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "mt_bench"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not on this machine")

TALE = Question("81", "writing", ("Tell {a} tale.", "Shorter."))
SUM = Question("111", "math", ("1 + 1?", "Plus 1?"))
REFERENCES = {"111": ("2", "3"), "81": ("unused", "unused")}
ANSWERS = {"81": ("Once {upon}", "Once"), "111": ("two", "three")}


def small(*questions: Question, **changes: Any) -> MTBench:
    return replace(MTBench(questions or (TALE, SUM), REFERENCES, read_prompts(OWN)), **changes)


def config(**values: Any) -> MTBenchConfig:
    settings = {"benchmark": "official", "questions": None, "reference_answers": None, "judge_prompts": None}
    settings |= {"decoding": SimpleNamespace(temperature=None), "cache_root": "nowhere", "max_items": None}
    settings |= values
    return cast(MTBenchConfig, SimpleNamespace(**settings))


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(question: object, *turns: str, model: str = "m") -> dict[str, Any]:
    return {"question_id": question, "model_id": model, "choices": [{"index": 0, "turns": list(turns)}]}


def test_each_turn_is_asked_with_its_own_prompt() -> None:
    one, two, three, four = small().requests(ANSWERS)
    assert [request.id for request in (one, two, three, four)] == ["81:turn-1", "81:turn-2", "111:turn-1", "111:turn-2"]
    assert one.messages[0] == {"role": "system", "content": "You are a helpful assistant."}
    assert one.messages[1]["content"].endswith(
        "\n\n[Question]\nTell {a} tale.\n\n"
        "[The Start of Assistant's Answer]\nOnce {upon}\n[The End of Assistant's Answer]"
    )
    assert "Reference" not in one.messages[1]["content"]
    assert two.messages[0]["content"].endswith('for example: "Rating: [[5]]".\n\n')
    assert two.messages[1]["content"] == (
        "<|The Start of Assistant A's Conversation with User|>\n\n### User:\nTell {a} tale.\n\n### Assistant A:\n"
        "Once {upon}\n\n### User:\nShorter.\n\n### Assistant A:\nOnce\n\n"
        "<|The End of Assistant A's Conversation with User|>"
    )
    assert_says(three.messages[1]["content"], "[The Start of Reference Answer]\n2\n[The End of Reference Answer]\n\n")
    assert four.messages[1]["content"].startswith(
        "<|The Start of Reference Answer|>\n\n### User:\n1 + 1?\n\n### Reference answer:\n2\n\n### User:\nPlus 1?\n\n"
        "### Reference answer:\n3\n\n<|The End of Reference Answer|>\n\n\n<|The Start of Assistant A's Conversation"
    )
    assert (four.prompt, four.answers) == (as_prompt("1 + 1?", "two", "Plus 1?"), ("three",))
    assert (one.prompt, one.answers) == (as_prompt("Tell {a} tale."), ("Once {upon}",))
    assert {json.dumps(request.settings) for request in (one, two, three, four)} == {
        '{"temperature": 0, "max_tokens": 2048}'
    }


@needs_shared
@pytest.mark.parametrize("model", ["mamba_0_5_dpo_ep3", "mamba_0_875_dpo_ep3"])
def test_what_gpt4_was_asked_byte_for_byte(model: str) -> None:
    paths = {"questions": "question.jsonl.gz", "reference_answers": "reference_answer_gpt-4.jsonl.gz"}
    benchmark = mt_bench(config(**{key: str(SHARED / name) for key, name in paths.items()}))
    name, outputs = benchmark.read_outputs(SHARED / "model_answer" / f"{model}.jsonl.gz")
    asked = {request.id: request for request in benchmark.requests(outputs)}
    with gzip.open(SHARED / "judgment_gpt-4_single_mambainllama_dpo.jsonl.gz", "rt") as file:
        rows = [row for row in map(json.loads, file) if row["model"] == name]
    assert (name, len(asked), len(rows)) == (model, 160, 160)
    for row in rows:
        messages = asked[f"{row['question_id']}:turn-{row['turn']}"].messages
        assert messages[1]["content"] == row["user_prompt"]
    judged = {f"{row['question_id']}:turn-{row['turn']}": Completion(row["judgment"], "stop") for row in rows}
    scores = benchmark.score(outputs, [Judged(request, (judged[key],)) for key, request in asked.items()])
    assert scores.metrics["overall"]["value"] == {"mamba_0_5_dpo_ep3": 7.3125, "mamba_0_875_dpo_ep3": 6.36875}[model]


@needs_shared
def test_the_prompts_kept_here_are_the_owners() -> None:
    assert read_prompts(OWN) == read_prompts(SHARED / "judge_prompts.jsonl.gz")


@needs_shared
def test_both_reference_files_serve_and_differ() -> None:
    hashes = set()
    for name in ("gpt-4", "gpt-4-1106-preview_simpo"):
        file = SHARED / f"reference_answer_{name}.jsonl.gz"
        settings = config(questions=str(SHARED / "question.jsonl.gz"), reference_answers=str(file))
        benchmark = mt_bench(settings)
        hashes.add(benchmark.describe()["references"])
        assert len(benchmark.items()) == 80
        assert sum(benchmark.reference_of(question) is not None for question in benchmark.questions) == 30
    assert len(hashes) == 2


def test_temperatures_go_by_category_unless_one_is_given_for_all() -> None:
    names = ("writing", "roleplay", "extraction", "math", "coding", "reasoning", "stem", "humanities", "mine")
    questions = tuple(Question(name, name, ("a", "b")) for name in names)
    references = dict.fromkeys(names, ("a", "b"))
    benchmark = small(questions=questions, references=references)
    assert [item.temperature for item in benchmark.items()] == [0.7, 0.7, 0, 0, 0, 0, 0.1, 0.1, 0.7]
    one = replace(benchmark, by_category=False)
    assert {item.temperature for item in one.items()} == {None}
    assert one.describe() != benchmark.describe()
    assert [item.category for item in benchmark.items()] == list(names)


def test_a_question_of_reason_needs_its_reference() -> None:
    with pytest.raises(UserError, match=r"question 111 \(math\) has no reference answer.*give reference_answers="):
        small(references={})
    with pytest.raises(UserError, match=r"question 111 \(math\) has a reference for 1 of its 2 turns"):
        small(references={"111": ("2",)})
    small(TALE, references={})
    with pytest.raises(UserError, match="question 5 has 3 turns"):
        small(Question("5", "writing", ("a", "b", "c")))


def test_what_scores_depend_on_is_described() -> None:
    described = [small(), small(references={"111": ("2", "4")}), small(TALE), small(by_category=False)]
    assert len({json.dumps(one.describe(), sort_keys=True) for one in described}) == 4
    unused = small(references={**REFERENCES, "81": ("other", "other")})
    assert unused.describe() == small().describe()


def test_a_judgment_without_rating_is_left_out_and_not_asked_again() -> None:
    benchmark = small()
    requests = benchmark.requests(ANSWERS)
    answers = [Completion(text, "stop") for text in ("[[8]]", "nothing", "[[2]]", "[[5]]")]
    judged = [Judged(request, (text,)) for request, text in zip(requests, answers, strict=True)]
    scores = benchmark.score(ANSWERS, judged)
    assert scores.metrics["overall"]["value"] == 5.0
    assert (scores.counts["unparsable"], scores.counts["missing"]) == (1, 0)
    assert benchmark.ask_again(requests[1], answers[1:2]) is None


def test_stored_answers_are_matched_by_question(tmp_path: Path) -> None:
    file = lines(tmp_path / "m.jsonl", answer(111, "two", "three"), answer("81", "Once {upon}", "Once"))
    name, outputs = small().read_outputs(file)
    assert (name, outputs) == ("m", ANSWERS)
    as_list = tmp_path / "m.json"
    as_list.write_text(json.dumps([answer(81, *ANSWERS["81"]), answer(111, *ANSWERS["111"])]))
    assert small().read_outputs(as_list) == ("m", ANSWERS)
    assert small().first(1).read_outputs(file)[1] == {"81": ANSWERS["81"]}
    assert [item.id for item in small().first(1).items()] == ["81"]
    assert small().first(None) == small().first(9) == small()


@pytest.mark.parametrize(
    ("rows", "fragments"),
    [
        ([answer(81, "a", "b"), answer(81, "a", "b")], (":2: question 81 is there twice",)),
        ([answer(81, "a", "b"), answer(111, "a", "b", model="n")], ("several models (m, n)",)),
        ([{"question_id": 81, "model_id": "m", "choices": []}], (":1: field 'choices' must be",)),
        ([{"question_id": 81, "model_id": "m", "choices": [{"turns": [1]}]}], (":1: field 'turns' must be",)),
        ([{"question_id": 81, "choices": [{"turns": ["a"]}]}], (":1: field 'model_id' is missing",)),
    ],
)
def test_answers_that_do_not_fit_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], fragments: tuple[str, ...]
) -> None:
    file = lines(tmp_path / "m.jsonl", *rows)
    with pytest.raises(UserError) as caught:
        small().read_outputs(file)
    assert_says(str(caught.value), str(file), *fragments)


def test_damaged_questions_and_references(tmp_path: Path) -> None:
    rows = [{"question_id": i, "category": "writing", "turns": ["a", "b"][: i + 1]} for i in (1, 0)]
    with pytest.raises(UserError, match="question 0 has 1 turns and question 1 2"):
        read_questions(lines(tmp_path / "q.jsonl", *rows))
    with pytest.raises(UserError, match=r":1: field 'category' is missing"):
        read_questions(lines(tmp_path / "q.jsonl", {"question_id": 1, "turns": ["a"]}))
    assert read_references(lines(tmp_path / "r.jsonl", answer(1, "a", "b"))) == {"1": ("a", "b")}
    assert read_answers(lines(tmp_path / "r.jsonl", answer(1, "a", "b"))) == ("m", {"1": ("a", "b")})


def test_prompts_that_cannot_be_filled(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in OWN.read_text().splitlines()]
    with pytest.raises(UserError, match=r"has no prompt single-v1-multi-turn"):
        read_prompts(lines(tmp_path / "p.jsonl", *[row for row in rows if row["name"] != "single-v1-multi-turn"]))
    for template, fragment in (
        ("{question} alone", "has the places question; it must have answer, question"),
        ("{question} {answer} {other}", "has the places answer, other, question"),
        ("{question", "cannot be filled"),
    ):
        with pytest.raises(UserError, match="'single-v1'") as caught:
            read_prompts(lines(tmp_path / "p.jsonl", {**rows[0], "prompt_template": template}))
        assert_says(str(caught.value), fragment)
    plain = read_prompts(lines(tmp_path / "p.jsonl", *[{**row, "system_prompt": ""} for row in rows]))
    assert [message["role"] for message in small(prompts=plain).requests(ANSWERS)[0].messages] == ["user"]
    assert small(prompts=plain).describe() != small().describe()


def test_what_is_not_here_is_fetched_once_and_checked(tmp_path: Path) -> None:
    content, asked = b'{"question_id": 1}\n', []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path == "/there" else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    address, wanted = f"http://127.0.0.1:{server.server_port}", hashlib.sha256(content).hexdigest()
    try:
        for _ in range(2):
            assert fetched((f"{address}/there", wanted), tmp_path / "c", "questions").read_bytes() == content
        assert asked == ["/there"]
        with pytest.raises(UserError, match=r"is not the file it was.*questions=FILE"):
            fetched((f"{address}/there", "0" * 64), tmp_path / "c", "questions")
        with pytest.raises(UserError, match=r"cannot be fetched \(.*404.*give a copy of it in questions=FILE"):
            fetched((f"{address}/gone", "1" * 64), tmp_path / "c", "questions")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UserError, match="cannot be fetched"):
        fetched((f"{address}/there", "2" * 64), tmp_path / "c", "questions")
    assert len(list((tmp_path / "c").iterdir())) == 1


def test_the_oracle_speaks_ratings_from_1_to_10() -> None:
    for points, rating in ((1.0, 1.0), (5.0, 10.0), (3.0, 5.5), (4.25, 8.3125)):
        assert parse_rating(spoken(Opinion((points,), None)).text) == rating


def test_the_toy_world_is_the_same_benchmark() -> None:
    benchmark = toy(read_prompts(OWN))
    assert {item.temperature for item in benchmark.items()} == {0.0, 0.7}
    ideal = {question.id: benchmark.references[question.id] for question in benchmark.questions}
    poor = {name: ("I do not know", answers[1]) for name, answers in ideal.items()}
    found = []
    for outputs in (ideal, poor):
        judged = []
        for request in benchmark.requests(outputs):
            points = score_response(request.prompt, request.answers[0]).overall
            judged.append(Judged(request, (request.spoken(Opinion((points,), None)),)))
        found.append(benchmark.score(outputs, judged).metrics)
    best, worst = found
    assert best["overall"]["value"] == pytest.approx(10.0, abs=0.3)
    assert worst["first_turn"]["value"] == pytest.approx(1.0)
    assert worst["second_turn"]["value"] > 8  # an answer that names nothing leaves the first question open
    assert {name for name in best if name.startswith("category/")} == {
        "category/writing",
        "category/reasoning",
        "category/math",
    }


def test_the_toy_world_reads_no_files() -> None:
    assert mt_bench(config(benchmark="toy")).name == "mt_bench"
    with pytest.raises(UserError, match=r"questions=q\.jsonl would not be read with benchmark=toy"):
        mt_bench(config(benchmark="toy", questions="q.jsonl"))
