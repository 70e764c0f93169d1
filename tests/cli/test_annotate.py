"""`python -m src.annotate`, and the way from a model to pairs of its own responses and on to training on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from src.data.sources import LocalPairs, ScoredResponsesFile
from tests.entry import assert_says, call, refused
from tests.support import ROOT, metrics, places
from tests.unit.annotation_tools import save_classifier
from tests.unit.data_tools import write_lines

MODEL = (
    "model=tiny",
    "model.init=scratch",
    "model.architecture.hidden_size=32",
    "model.architecture.intermediate_size=64",
    "model.architecture.num_hidden_layers=1",
    "model.architecture.vocab_size=320",
)
RUN = ("~recipe", "engine.device=cpu", "evaluation.every_steps=0", "evaluation.max_pairs=8", "checkpoint.every_steps=0")


def run_of(folder: Path, method: str) -> Path:
    (directory,) = (folder / "runs").glob(f"{method}__*")
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen a little of the toy world, its responses, and their annotation by the oracle."""
    folder: Path = tmp_path_factory.mktemp("world")
    sft = call(
        *("src.train", "method=sft", *MODEL, *RUN, *places(folder)),
        *("training.max_steps=40", "training.global_batch_size=16", "training.micro_batch_size=16"),
        *("training.learning_rate=1e-2", "dataset.source.prompts=120", "dataset.source.demonstration_prompts=700"),
    )
    assert sft.code == 0, sft.err
    generated = call(
        *("src.generate", f"checkpoint={run_of(folder, 'sft')}", "max_prompts=40", "n=4", "seeds=[1,2,3,4]"),
        *("max_new_tokens=24", f"output={folder / 'generations'}"),
    )
    assert generated.code == 0, generated.err
    annotated = call("src.annotate", f"generations={folder / 'generations'}", f"output={folder / 'annotations'}")
    assert annotated.code == 0, annotated.err
    assert annotated.out.splitlines()[-1] == str(folder / "annotations" / "pairs.jsonl")
    return folder


def train(folder: Path, method: str, *dataset: str) -> list[float]:
    """Losses of a short run from the SFT weights."""
    weights = run_of(folder, "sft") / "checkpoints" / "best" / "model"
    trained = call(
        *("src.train", f"method={method}", "model=tiny", "model.init=pretrained", f"model.path={weights}"),
        *(*RUN, *places(folder), *dataset, "dataset.validation_fraction=0.3", "dataset.max_prompt_length=128"),
        *("dataset.max_length=256", "training.max_steps=6", "training.global_batch_size=4"),
        *("training.micro_batch_size=4", "training.learning_rate=1e-3", "training.epochs=20"),
    )
    assert trained.code == 0, trained.err
    return [line["loss"] for line in metrics(run_of(folder, method), "train")]


def test_pairs_of_a_models_own_responses_train_it(world: Path) -> None:
    manifest = json.loads((world / "annotations" / "pairs.jsonl.manifest.json").read_text())
    counts = manifest["counts"]
    assert (counts["prompts"], counts["responses"]) == (40, 160)
    assert counts["pairs"] + sum(counts["skipped"].values()) == 40
    assert counts["pairs"] >= 8
    losses = train(world, "simpo", "dataset=local", f"dataset.source.path={world / 'annotations' / 'pairs.jsonl'}")
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    prepared = json.loads((run_of(world, "simpo") / "manifest.json").read_text())
    assert prepared["counts"]["train"] + prepared["counts"]["validation"] == counts["pairs"]


def test_all_scored_responses_train_it_too(world: Path) -> None:
    responses = world / "annotations" / "responses.jsonl"
    pairing = ("dataset.source.pairing=all_pairs", "dataset.source.min_gap=0.2")
    losses = train(world, "amapo", "dataset=scored_responses", f"dataset.source.path={responses}", *pairing)
    assert len(losses) == 6


def test_every_link_of_the_chain_is_named_and_checked(world: Path, tmp_path: Path) -> None:
    stages = {
        name: json.loads((world / path).read_text())
        for name, path in (
            ("generate", "generations/manifest.json"),
            ("annotate", "annotations/manifest.json"),
            ("pairs", "annotations/pairs.jsonl.manifest.json"),
        )
    }
    assert stages["pairs"]["identity"]["annotation"] == stages["annotate"]["hash"]
    assert stages["annotate"]["identity"]["inputs"] == [stages["generate"]["hash"]]
    assert stages["pairs"]["chain"][:2] == stages["annotate"]["chain"]
    assert stages["annotate"]["chain"][:1] == stages["generate"]["chain"]
    pairs = world / "annotations" / "pairs.jsonl"
    whole = pairs.read_bytes()
    pairs.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
    try:
        message = refused("src.preflight", "dataset=local", f"dataset.source.path={pairs}", *MODEL, *places(tmp_path))
    finally:
        pairs.write_bytes(whole)
    assert_says(message, "pairs.jsonl is not the file that pairs.jsonl.manifest.json describes")


def test_a_real_file_of_scored_responses_is_paired_as_its_source_pairs_it(tmp_path: Path) -> None:
    path = ROOT.parent / "shared" / "data" / "pref" / "alpaca_pref_24x805.jsonl.gz"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")  # tests/unit/test_annotation.py has the same on generated data
    done = call("src.annotate", f"generations={path}", "scorer=recorded", f"output={tmp_path / 'out'}", "min_gap=0.5")
    assert done.code == 0, done.err
    made = list(LocalPairs(str(tmp_path / "out" / "pairs.jsonl")).pairs())
    assert made == list(ScoredResponsesFile(str(path), min_gap=0.5).pairs())
    assert "of 805 prompts and 19320 responses" in done.out


def test_the_same_command_repeats_nothing(world: Path) -> None:
    shards = {path: path.stat().st_mtime_ns for path in (world / "annotations").rglob("shards/*")}
    again = call("src.annotate", f"generations={world / 'generations'}", f"output={world / 'annotations'}")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in shards} == shards


def test_a_reward_model_from_the_command_line(world: Path, tmp_path: Path) -> None:
    path = save_classifier(tmp_path / "model", vocab_size=300)
    done = call(
        *("src.annotate", f"generations={world / 'generations'}", "scorer=reward_model", f"scorer.path={path}"),
        *("scorer.batch_size=16", f"output_root={tmp_path / 'annotations'}"),
    )
    assert done.code == 0, done.err
    (directory,) = (tmp_path / "annotations").iterdir()
    assert directory.name.startswith("reward_model__generations__")
    assert (directory / "pairs.jsonl").exists()
    assert "of 40 prompts and 160 responses" in done.out


def test_mistakes_are_said_before_anything_is_scored(tmp_path: Path) -> None:
    assert_says(refused("src.annotate"), "generations has no value; set it on the command line")
    assert_says(refused("src.annotate", "generations=/no/such"), "generations=/no/such: no such file")
    path = write_lines(tmp_path / "one.jsonl", [{"prompt_id": 1, "prompt": "x", "responses": [{"text": "a"}]}])
    assert_says(refused("src.annotate", f"generations={path}"), "none of 1 prompts has two responses")
    assert_says(refused("src.annotate", f"generations=[{path},{path}]"), "names a path twice")
    assert_says(refused("src.annotate", f"generations={path}", "scorer=armo"), "scorer=armo does not exist")
    assert_says(refused("src.annotate", f"generations={path}", "scorer=reward_model"), "scorer.path has no value")
    assert_says(refused("src.annotate", f"generations={path}", "shard_size=0"), "shard_size=0 is too small")
    assert_says(
        refused(
            "src.annotate",
            f"generations={path}",
            "scorer=judge",
            "scorer.base_url=x",
            "scorer.model=m",
            "scorer.tries=0",
        ),
        "scorer.tries=0 cannot work",
    )
    assert_says(
        refused("src.annotate", f"generations={path}", "scorer._target_=src.data.noise.NoNoise"),
        "scorer._target_=src.data.noise.NoNoise gives no scores",
    )
    assert list(tmp_path.iterdir()) == [tmp_path / "one.jsonl"]
