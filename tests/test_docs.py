"""Documents: links and anchors lead somewhere, and commands name modules, keys and choices that there are."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from src.cli import register_schemas
from src.config import CONF, SCHEMAS
from src.errors import UserError
from src.reporting.readme import text_of, with_table
from src.reproduce import translated
from src.submit import separated
from tests.entry import PROGRAMS, assert_says, refused
from tests.test_house import ROOT, is_entry_point

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    + [
        path
        for folder in ("docs", "experiments", "results")
        for path in (ROOT / folder).rglob("*.md")
        if "tables" not in path.parts
    ]
)
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6} +(.*?)\s*#*$", re.MULTILINE)
COMMAND = re.compile(r"python -m ((?:src|tests|benchmarks)(?:\.[a-z_]+)+)\b(?!\.)(.*)")
EXAMPLES = {"src.evaluation.acceptance", "simpo_hinge", "soft_filter", "shp"}
"""What the pages on adding something add; tests/config puts it in place and runs it."""

GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}


def prose(path: Path) -> str:
    """A page without its code, in which brackets are no links."""
    text = re.sub(r"^(?: {4,}|\t).*$", "", FENCED.sub("", path.read_text()), flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


@cache
def anchors(path: Path) -> frozenset[str]:
    """What ``#...`` may say of a page: its headings as GitHub names them, and anchors written out."""
    text = FENCED.sub("", path.read_text())
    found: dict[str, int] = {}
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found[name] = found.get(name, -1) + 1
    again = {f"{name}-{number}" for name, last in found.items() for number in range(1, last + 1)}
    return frozenset(again | set(found) | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)))


def broken(path: Path) -> Iterator[str]:
    """Relative links of a page that lead nowhere."""
    for target in LINK.findall(prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        if not there.exists():
            yield f"{path.relative_to(ROOT)}: {target}: there is no such file"
        elif not there.is_relative_to(ROOT):
            yield f"{path.relative_to(ROOT)}: {target}: leads out of the repository"
        elif anchor and (there.suffix != ".md" or anchor not in anchors(there)):
            yield f"{path.relative_to(ROOT)}: {target}: there is no such heading"


def test_links_lead_somewhere() -> None:
    links = sum(len(LINK.findall(prose(path))) for path in PAGES)
    assert len(PAGES) > 20
    assert links > 60
    assert [wrong for path in PAGES for wrong in broken(path)] == []


def test_every_page_of_docs_is_in_an_index() -> None:
    """In that of all pages, or in that of its folder."""
    indices = sorted((ROOT / "docs").rglob("README.md"))
    named = {
        (index.parent / target.partition("#")[0]).resolve()
        for index in indices
        for target in LINK.findall(prose(index))
    }
    there = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "README.md"}
    assert sorted(path for path in there if path not in named) == []


def commands() -> Iterator[tuple[str, str, str]]:
    """(page, module, the rest of the line) of every command of a page."""
    for path in PAGES:
        for module, rest in COMMAND.findall(path.read_text()):
            yield path.name, module, re.split(r"`|\s#|\s\s|\)|;", rest)[0].strip()


def test_commands_name_modules() -> None:
    found = {(page, module) for page, module, _ in commands()}
    assert len(found) > 40
    missing = []
    for page, module in found:
        spec = None if module in EXAMPLES else importlib.util.find_spec(module)
        if module not in EXAMPLES and (spec is None or spec.origin is None or not is_entry_point(Path(spec.origin))):
            missing.append(f"{page}: {module}")
    assert missing == []


def config_of(module: str) -> str:
    """The configuration that an entry point composes; ``src.submit`` composes trainings."""
    return "train" if module == "src.submit" else module.rpartition(".")[2]


def overrides_of(module: str, rest: str) -> list[str] | None:
    """The overrides of a command, of a sweep the first; ``None`` where it holds places to be filled in. The
    report's ``sweep=`` is spelt ``swept=`` in its configuration."""
    rest = re.sub(r"\bsweep=(?=[a-z_]+$|\[)", "swept=", rest) if module == "src.report" else rest
    if "…" in rest or re.search(r"\b[a-z_@]+=[A-Z]+\b", rest):
        rest = re.sub(r"\s(?:checkpoint|\S*path|\S*FILE|samples|annotations|outputs|generations)=\S*", "", f" {rest}")
    try:
        words = translated(shlex.split(rest))
    except ValueError:
        return None
    if any("…" in word or re.search(r"=[A-Z_/.]+$", word) for word in words):
        return None
    kept = [word for word in words if "=" in word and not word.startswith("hydra/")]
    if module == "src.submit":  # its own keys aside, each of which is in its schema
        return [first_of(word) for word in separated(kept)[1]]
    return [first_of(word) for word in kept] if "-m" in words else kept


def first_of(override: str) -> str:
    """The first value of a sweep over one key."""
    key, _, values = override.partition("=")
    return override if values.startswith("[") else f"{key}={values.split(',')[0]}"


def distinct() -> dict[tuple[str, tuple[str, ...]], set[str]]:
    """(configuration, choices of groups) -> keys, of the commands that compose. README's commands are run by a test of
    their own, and those of the page on messages are mistakes."""
    found: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for page, module, rest in commands():
        overrides = overrides_of(module, rest)
        if page in ("README.md", "troubleshooting.md") or overrides is None or "--" in rest:
            continue
        if config_of(module) in SCHEMAS and not any(example in rest for example in EXAMPLES):
            groups = tuple(sorted(text for text in overrides if re.split("[@=.]", text.lstrip("+"))[0] in GROUPS))
            chosen = tuple(text for text in groups if "." not in text.partition("=")[0])
            keys = {text.partition("=")[0] for text in overrides if text not in chosen and not text.startswith("+")}
            found.setdefault((config_of(module), chosen), set()).update(keys)
    return found


def test_commands_compose() -> None:
    found = distinct()
    assert sum(map(len, found.values())) > 60
    register_schemas()
    GlobalHydra.instance().clear()
    wrong = []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for (name, groups), keys in found.items():
            try:
                config = hydra.compose(name, overrides=list(groups))
                wrong += [f"{name} {' '.join(groups)}: {key}" for key in keys if not has(config, key)]
            except HydraException as error:
                wrong.append(f"{name} {' '.join(groups)}: {str(error).splitlines()[0]}")
    assert wrong == []


def has(config: DictConfig, key: str) -> bool:
    """Whether a configuration has a key, be it null or missing."""
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    return isinstance(node, DictConfig) and leaf in OmegaConf.to_container(node, resolve=False)


def quoted() -> list[tuple[str, list[str]]]:
    """(command, fragments of what it says) of every command with a ``$`` in the page on messages."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    found = re.findall(r"^    \$ python -m (.*)\n((?:    .*\n)+)", text, re.MULTILINE)
    return [
        (command, [part.strip() for line in said.splitlines() for part in line.split("…") if len(part.strip()) > 2])
        for command, said in found
    ]


def test_messages_are_as_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROGRAMS, "src.reproduce", "reproduce")
    assert len(quoted()) >= 8
    for command, fragments in quoted():
        module, *arguments = translated(shlex.split(command))
        assert fragments
        assert_says(refused(module, *arguments), *fragments)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](README.md)", 0),
        ("[a](nowhere.md)", 1),
        ("[a](README.md#two-words-and-code)", 0),
        ("[a](README.md#two-words)", 1),
        ("[a](#here)\n\n# Here", 0),
        ("    [a](nowhere.md)", 0),
        ("```\n[a](nowhere.md)\n```", 0),
        ("`[a](nowhere.md)` [![b](no.png)](README.md)", 0),
        ("[a](https://example.org/nowhere.md)", 0),
    ],
)
def test_the_check_sees_broken_links(text: str, wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_docs.ROOT", tmp_path)
    (tmp_path / "README.md").write_text("# Two words, and `code`\n")
    (tmp_path / "page.md").write_text(text)
    assert len(list(broken(tmp_path / "page.md"))) == wrong


def test_a_rendered_table_and_its_claims_go_into_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("## A\n\n| 1 |\n")
    (tmp_path / "a_claims.md").write_text("## Claims\n")
    text = with_table(
        "before\n<!-- reproduced table -->\nold\n<!-- end of reproduced table -->\n", text_of(tmp_path / "a.md")
    )
    assert "old" not in text
    assert "### A\n\n| 1 |" in text
    assert text.index("| 1 |") < text.index("<details>") < text.index("### Claims")
    with pytest.raises(UserError, match="no such file"):
        text_of(tmp_path / "b.md")
    assert with_table((ROOT / "README.md").read_text(), "x")
