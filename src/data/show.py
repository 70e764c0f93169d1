"""`python -m src.data.show <overrides of src.train>`: prepared pairs, token by token, as training would see them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf

from src.cli import entry_point
from src.config import bound_problems, frozen, problems_of
from src.errors import Problems, UserError
from src.schema import ShowConfig, TrainConfig

if TYPE_CHECKING:
    from src.data.prepare import PreparedData
    from src.data.showing.rows import ShownPair


def main(config: DictConfig) -> int:
    from rich.console import Console

    from src.data.showing.page import page_of
    from src.data.showing.terminal import print_pairs
    from src.parts import given_overrides, with_parts

    checked = cast(ShowConfig, config)
    data_config = OmegaConf.masked_copy(config, [spec.name for spec in fields(TrainConfig)])
    problems = problems_of(config, ShowConfig) + bound_problems(data_config, TrainConfig, "")
    if problems:
        raise Problems(list(dict.fromkeys(problems)))
    heading, pairs = collected(frozen(with_parts(data_config, given_overrides())), checked)
    if checked.html is not None:
        write_page(Path(checked.html), page_of(pairs, heading, ids=checked.ids))
    print_pairs(pairs, heading, Console(highlight=False), ids=checked.ids)
    if checked.html is not None:
        print(checked.html)
    return 0


def collected(config: TrainConfig, checked: ShowConfig) -> tuple[list[str], list[ShownPair]]:
    """Lines that say what is shown, and the pairs: taken from the prepared set that training would use."""
    from src.data.showing.rows import chosen_pairs, cuts_of, shown
    from src.training.assemble import build_objective, build_source, build_template, build_tokenizer, prepare_data

    source = build_source(config)
    tokenizer = build_tokenizer(config, source)
    template = build_template(config, tokenizer)
    data = prepare_data(config, template, source, build_objective(config))
    split = data.train if checked.split == "train" else data.validation
    chosen = chosen_pairs(split, checked.pairs, list(checked.only))
    cuts = cuts_of(chosen, source, template) if any(data.manifest["truncated"].values()) else {}
    pairs = [shown(pair, tokenizer, cuts.get(pair.id)) for pair in chosen]
    return heading_of(config, checked, data, len(pairs), len(split)), pairs


def heading_of(config: TrainConfig, checked: ShowConfig, data: PreparedData, count: int, total: int) -> list[str]:
    """What is shown of which prepared set, by which template."""
    template = data.manifest["template"]
    return [
        f"{config.dataset.name}, {checked.split} split: {count} of {total} pairs",
        f"model {config.model.name}, template {template['name']}, span {template['response_span']}, "
        f"stop token {template['stop_token']}",
        f"prepared set {data.manifest['hash'][:12]}, {data.manifest['flipped']['count']} training pairs flipped",
    ]


def write_page(path: Path, text: str) -> None:
    """Write the page; raises ``UserError`` when that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"html={path} cannot be written ({error.strerror}); give another file") from error


if __name__ == "__main__":
    entry_point("show", main)
