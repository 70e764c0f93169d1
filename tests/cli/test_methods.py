"""`python -m src.methods` as a user types it: the list, one method, and the check of test vectors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from src.catalogue.rows import names
from src.config import ROOT
from src.methods import main

GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.json"))
DEVELOPMENT = ROOT.parent / "shared" / "vectors.json"

Said = Callable[..., tuple[int, str, str]]
Content = dict[str, Any]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Exit code, standard output and standard error of a call."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ending:
            code = int(ending.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def golden(family: str) -> Content:
    content: Content = json.loads((ROOT / "tests" / "golden" / f"{family}.json").read_text())
    return content


def written(folder: Path, content: Content) -> Path:
    path = folder / "vectors.json"
    path.write_text(json.dumps(content))
    return path


# --- list and page ----------------------------------------------------------------------------------------------------


def test_list_has_an_aligned_line_per_method(said: Said) -> None:
    code, out, _ = said()
    head, *lines = out.splitlines()
    assert code == 0
    assert sorted(line.split()[0] for line in lines) == names()
    (simpo,) = (line for line in lines if line.startswith("simpo "))
    assert simpo.index("AverageLogProb") == head.index("reward")
    assert "gamma_beta_ratio 0.5" in simpo


def test_page_of_a_method(said: Said) -> None:
    code, out, _ = said("amapo")
    assert code == 0
    assert "loss = mean_i( link( reward(y_w) − reward(y_l),  target_i ) )" in out


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["simpoo"], "no method is called simpoo; did you mean simpo"),
        (["check"], "check needs a file of test vectors"),
        (["dpo", "--dtype", "float32"], "belong to check"),
        (["dpo", "--update-readme"], "goes without dpo"),
        (["check", "nowhere.json"], "nowhere.json cannot be read: No such file"),
        (["check", ROOT / "README.md"], "it is no JSON"),
        (["check", ROOT / "tests" / "golden" / "smoothed.json", "--tag", "cdp"], "has no such tag; did you mean cdpo"),
    ],
)
def test_mistakes_are_said_in_our_words(arguments: list[Any], fragment: str, said: Said) -> None:
    code, _, err = said(*arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert fragment in err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['m', '--help']; import src.methods as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('torch', 'transformers', 'hydra') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    assert "--update-readme" in done.stdout


# --- check ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_numbers_pass(path: Path, said: Said) -> None:
    code, out, _ = said("check", path)
    assert (code, "FAIL" in out) == (0, False), out
    tags = {vector["tag"] for vector in json.loads(path.read_text()).get("vectors", [])}
    assert tags <= {line.split()[0] for line in out.splitlines() if line.endswith(" ok")}


@pytest.mark.skipif(
    not DEVELOPMENT.exists(), reason="the vectors of the development folder are not here; golden ones are"
)
def test_vectors_of_the_development_folder_pass(said: Said) -> None:
    code, out, _ = said("check", DEVELOPMENT)
    assert (code, "FAIL" in out) == (0, False), out
    assert out.count(" ok\n") >= 67


def vector_of(content: Content) -> Content:
    found: Content = content["vectors"][0]
    return found


def corrupt_loss(content: Content) -> None:
    vector_of(content)["batch_loss"] *= 1 + 1e-7


def corrupt_gradient(content: Content) -> None:
    vector_of(content)["dL_ds_l"][2] += 3e-9


def corrupt_state(content: Content) -> None:
    vector_of(content)["state_out"]["queue"][-1] += 1e-7


def lose_a_gradient(content: Content) -> None:
    vector_of(content)["dL_ds_l"].pop()


def unknown_tag(content: Content) -> None:
    vector_of(content)["tag"] = "perfect_preference_optimization"


def tag_of_another_method(content: Content) -> None:
    vector_of(content)["method"] = "simpo"


def unknown_key(content: Content) -> None:
    vector_of(content)["config"]["temperature"] = 1.0


def unknown_batch(content: Content) -> None:
    vector_of(content)["batch"] = "Q"


def unknown_value(content: Content) -> None:
    vector_of(content)["config"]["beta"] = "much"


def refused_value(content: Content) -> None:
    vector_of(content)["config"]["beta"] = -1.0


def unknown_table(content: Content) -> None:
    content["extra"] = {"astrology": [{"sign": 1.0}]}


def unknown_section(content: Content) -> None:
    content["more_vectors"] = [{}]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ([], "holds no test vectors"),
        ({"batches": {}}, "holds no test vectors"),
        ({"vectors": [{"tag": "dpo"}]}, "an entry of vectors has no config"),
        ({"vectors": {"tag": "dpo"}}, "vectors must be a list of objects"),
        ({"vectors": [], "batches": {"A": {"s_w": [1.0], "s_l": []}}}, "batch A must be lists of one length"),
        ({"vectors": [], "extra": []}, "must be objects"),
    ],
)
def test_what_is_no_file_of_vectors_is_refused(content: Any, fragment: str, said: Said, tmp_path: Path) -> None:
    code, _, err = said("check", written(tmp_path, content))
    assert code == 2
    assert fragment in err


@pytest.mark.parametrize(
    ("family", "change", "fragment"),
    [
        ("smoothed", corrupt_loss, "batch_loss is off by"),
        ("smoothed", corrupt_gradient, "dL_ds is off by"),
        ("with_state", corrupt_state, "state queue is off by"),
        ("smoothed", lose_a_gradient, "dL_ds is off by inf"),
        ("smoothed", unknown_tag, "begins with the name of no method"),
        ("smoothed", tag_of_another_method, "does not begin with the name of its method, simpo"),
        ("smoothed", unknown_key, "configuration key temperature is not known of cdpo"),
        ("smoothed", unknown_batch, "the file has no batch Q"),
        ("smoothed", unknown_value, "beta='much' has the wrong type"),
        ("smoothed", refused_value, "beta=-1.0"),
        ("smoothed", unknown_table, "nothing here computes this table"),
        ("smoothed", unknown_section, "nothing here reads the file's section more_vectors"),
    ],
)
def test_what_is_wrong_with_a_file_fails_its_tag(
    family: str, change: Callable[[Content], None], fragment: str, said: Said, tmp_path: Path
) -> None:
    content = golden(family)
    change(content)
    code, out, err = said("check", written(tmp_path, content), "--dtype", "float64")
    assert (code, err) == (1, "")
    assert fragment in out
    assert "FAIL" in out


def test_wrong_numbers_fail_in_single_precision_alone(said: Said, tmp_path: Path) -> None:
    content = golden("smoothed")
    vector_of(content)["batch_loss"] *= 1 + 1e-4
    code, out, _ = said("check", written(tmp_path, content), "--dtype", "float32", "--tag", "cdpo")
    assert code == 1
    assert "in float32" in out


def test_toy_with_a_wrong_gradient_fails(said: Said, tmp_path: Path) -> None:
    content = golden("anchor")
    content["gapo_toy"]["vectors"][0]["grad_theta"][17] += 3e-9
    path, tag = written(tmp_path, content), content["gapo_toy"]["vectors"][0]["config"]["tag"]
    assert said("check", path, "--dtype", "float64", "--tag", tag)[0] == 1


def test_tags_and_precision_can_be_chosen(said: Said) -> None:
    code, out, _ = said("check", ROOT / "tests" / "golden" / "smoothed.json", "--tag", "cdpo", "--dtype", "float64")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["tag", "cdpo"]
    assert "float32" not in out


def test_tables_of_a_batch_that_is_not_there_are_not_failures(said: Said, tmp_path: Path) -> None:
    content = golden("tokens")
    content["extra"]["sft"].append({**content["extra"]["sft"][0], "batch": "Q"})
    code, out, _ = said("check", written(tmp_path, content))
    assert code == 0
    assert "not checked: extra.sft, row 4 (batch Q): the file does not hold that batch" in out


def test_other_batches_and_numbers_are_read_as_they_come(said: Said, tmp_path: Path) -> None:
    content = golden("smoothed")
    content["batches"] = {f"{name}3": batch for name, batch in content["batches"].items()}
    for vector in content["vectors"]:
        vector |= {"batch": f"{vector['batch']}3", "vector": 3}
    code, out, _ = said("check", written(tmp_path, content), "--dtype", "float64")
    assert code == 0, out
