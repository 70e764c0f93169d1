"""Filter, adapter and trained parameters in the configuration: what selects them, and what the SFT base keeps."""

from __future__ import annotations

import pytest

from src.config import compose_train, run_directory
from src.training.run import sft_base

SMALL = ("model=tiny", "dataset=toy")


def test_the_hard_filter_is_simpo_on_filtered_pairs() -> None:
    plain = compose_train([*SMALL, "method=simpo", "~recipe", "method.beta=1.0"])
    hard = compose_train([*SMALL, "method=gappo_hard_filter", "~recipe"])
    assert (plain.dataset.min_score_gap, hard.dataset.min_score_gap) == (0, 1)
    assert {**hard.method, "name": "simpo"} == plain.method
    assert hard.method["gamma_beta_ratio"] == 0.5
    wider = compose_train([*SMALL, "method=gappo_hard_filter", "dataset.min_score_gap=2"])
    assert wider.dataset.min_score_gap == 2
    assert compose_train([*SMALL, "method=gappo", "filter@dataset=score_gap"]).dataset.min_score_gap == 1


@pytest.mark.parametrize("key", ["model.trainable=mlp", "adapter=lora", "filter@dataset=score_gap", "method=gappo"])
def test_runs_of_one_model_and_data_set_share_their_sft_base(key: str) -> None:
    plain, other = compose_train([*SMALL, "method=simpo"]), compose_train([*SMALL, "method=simpo", key])
    one, two = sft_base(plain), sft_base(other)
    assert one is not None
    assert two is not None
    assert run_directory(one) == run_directory(two)
    assert run_directory(plain) != run_directory(other)
    assert (two.model.trainable, two.adapter.name, two.dataset.min_score_gap) == ("full", "none", 0)


def test_sft_itself_may_train_a_part() -> None:
    assert compose_train([*SMALL, "method=sft", "model.trainable=mlp"]).model.trainable == "mlp"
