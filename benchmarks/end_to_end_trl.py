"""What a user of TRL would write for the task of benchmarks/end_to_end.py: METHOD [precomputed] TASK OUTPUT PAIRS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.end_to_end import BATCH


def main() -> int:
    method, *how, task, output, count = sys.argv[1:]
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loader: Any = AutoTokenizer
    tokenizer, folder = loader.from_pretrained(f"{task}/model"), f"{task}/model"
    lines = Path(task, "pairs.jsonl").read_text(encoding="utf-8").splitlines()[: int(count)]
    rows = [json.loads(line) for line in lines]
    pairs = Dataset.from_list(
        [{"prompt": row["prompt"], "chosen": " " + row["chosen"], "rejected": " " + row["rejected"]} for row in rows]
    )
    options: dict[str, Any] = {
        "output_dir": output,
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_length": 2048,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
    }
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    common = {"model": model, "train_dataset": pairs, "processing_class": tokenizer}
    trainer: Any
    if method == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        simpo = CPOConfig(loss_type="simpo", beta=2.5, simpo_gamma=1.375, cpo_alpha=0.0, **options)
        trainer = CPOTrainer(args=simpo, **common)
    else:
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        dpo = DPOConfig(beta=0.1, precompute_ref_log_probs="precomputed" in how, **options)
        trainer = DPOTrainer(args=dpo, **common)
    trainer.train()
    trainer.save_model(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
