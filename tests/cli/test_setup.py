"""The set-up: lists of packages, pins, the choice of torch, targets of make and what the documents say of them."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
REQUIREMENTS = ROOT / "requirements"
LISTS = ("core", "test", "wandb", "evaluation", "cluster")
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "TORCH"))}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False, timeout=60
    )


def requirements_in(name: str) -> list[Requirement]:
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, list[Requirement]]:
    """Constraints by package; one with several has a marker on each."""
    found: dict[str, list[Requirement]] = {}
    for requirement in requirements_in("constraints"):
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def targets() -> dict[str, str]:
    """Targets of the Makefile that help describes; `%` stands for a number or letter."""
    return dict(re.findall(r"^([a-z-]+%?):.*## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))


def section(document: str, heading: str) -> str:
    text = (ROOT / document).read_text()
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match, f"{document} has no section {heading}"
    return match.group(1)


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_every_listed_package_is_pinned_to_a_version_that_fits(name: str) -> None:
    pinned = pins()
    for requirement in requirements_in(name):
        for pin in pinned[canonicalize_name(requirement.name)]:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement} against {pin}"


def test_constraints_are_exact_and_leave_cuda_to_torch() -> None:
    pinned = pins()
    assert len(pinned) > 120
    for name, requirements in pinned.items():
        assert all(re.fullmatch(r"==[\w.]+", str(requirement.specifier)) for requirement in requirements), name
        assert len(requirements) == 1 or all(requirement.marker for requirement in requirements), name
        assert not name.startswith(("nvidia-", "cuda-")), name
    # without a local part, so that 2.13.0, 2.13.0+cpu and 2.13.0+cu130 all satisfy it
    assert str(pinned["torch"][0].specifier) == "==2.13.0"


def test_pyproject_reads_the_same_lists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["project"]["dynamic"]) == {"dependencies", "optional-dependencies"}
    dynamic = project["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements/core.txt"]}
    assert dynamic["optional-dependencies"] == {
        name: {"file": [f"requirements/{name}.txt"]} for name in LISTS if name != "core"
    }


# --- the choice of torch ----------------------------------------------------------------------------------------------

FAKE_PIP = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *{refused}*) exit 1 ;; esac
"""


def torch_attempts(
    tmp_path: Path, build: str, refused: str, system: str = "Linux"
) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """What install_torch.sh asks pip for on ``system`` when every request with ``refused`` in it fails."""
    log = tmp_path / "log"
    log.touch()
    programs = {"python": FAKE_PIP.format(log=log, refused=refused), "uname": f"#!/bin/sh\necho {system}\n"}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{ENVIRONMENT['PATH']}"
    done = run("sh", str(REQUIREMENTS / "install_torch.sh"), str(tmp_path / "python"), build, PATH=path)
    return log.read_text().splitlines(), done


def test_cpu_build_comes_from_configured_sources_first(tmp_path: Path) -> None:
    attempts, done = torch_attempts(tmp_path, "cpu", refused="nothing")
    assert done.returncode == 0
    assert len(attempts) == 1
    assert "--index-url" not in attempts[0]
    assert "--no-deps" in attempts[0]


def test_cpu_build_falls_back_to_the_default_build_and_says_so(tmp_path: Path) -> None:
    attempts, done = torch_attempts(tmp_path, "cpu", refused="+cpu")
    assert done.returncode == 0
    assert [attempt.split()[-1] for attempt in attempts] == ["torch==2.13.0+cpu", "torch==2.13.0+cpu", "torch==2.13.0"]
    assert "--index-url https://download.pytorch.org/whl/cpu --retries 0" in attempts[1]
    assert "No CPU build of torch 2.13.0 found" in done.stdout


def test_cpu_build_on_macos_is_the_plain_one(tmp_path: Path) -> None:
    attempts, done = torch_attempts(tmp_path, "cpu", refused="nothing", system="Darwin")
    assert done.returncode == 0
    assert [attempt.split()[-1] for attempt in attempts] == ["torch===2.13.0"]


def test_cuda_build_is_not_satisfied_by_the_cpu_build(tmp_path: Path) -> None:
    attempts, done = torch_attempts(tmp_path, "cuda", refused="nothing")
    assert done.returncode == 0
    assert [attempt.split()[-1] for attempt in attempts] == ["torch===2.13.0"]


def test_failure_of_the_last_attempt_is_a_failure(tmp_path: Path) -> None:
    assert torch_attempts(tmp_path, "cpu", refused="torch=")[1].returncode != 0


def test_unknown_build_is_refused(tmp_path: Path) -> None:
    attempts, done = torch_attempts(tmp_path, "rocm", refused="nothing")
    assert (attempts, done.returncode) == ([], 2)
    assert "TORCH=rocm: unknown build of torch. Write TORCH=auto, TORCH=cpu or TORCH=cuda." in done.stderr


def test_python_that_is_too_old_is_refused(tmp_path: Path) -> None:
    done = run("sh", str(REQUIREMENTS / "create_venv.sh"), str(tmp_path / "venv"), PYTHON3="false")
    assert done.returncode == 2
    assert "No Python >= 3.11 found" in done.stderr
    assert "make setup PYTHON3=" in done.stderr


# --- the installer ----------------------------------------------------------------------------------------------------

FAKE_PYTHON = """#!/bin/sh
case "$*" in
    "-c "*) echo "{folder}" ;;
    *"pip config list"*) cat "{folder}/settings" ;;
    *) echo "pip $*" >> "{folder}/log" ;;
esac
"""
FAKE_UV = """#!/bin/sh
echo "uv $UV_FIND_LINKS $UV_INDEX $UV_CONSTRAINT $*" >> "{folder}/log"
exit {code}
"""


def installed(folder: Path, code: int) -> list[list[str]]:
    """Words of the calls by which install.sh installs a list where uv ends with ``code``."""
    tools = folder / ".uv" / "bin"
    tools.mkdir(parents=True)
    programs = {folder / "python": FAKE_PYTHON, tools / "uv": FAKE_UV}
    for path, text in programs.items():
        path.write_text(text.format(folder=folder, code=code))
        path.chmod(0o755)
    (folder / "settings").write_text(
        ":env:.find-links='/one /two'\nglobal.extra-index-url='\\nfile:///a\\nfile:///b'\nglobal.find-links='/three'\n"
    )
    script = str(REQUIREMENTS / "install.sh")
    assert run("sh", script, str(folder / "python"), "-r", "list.txt", PIP_CONSTRAINT="pins.txt").returncode == 0
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def test_uv_installs_from_the_sources_that_pip_sees(tmp_path: Path) -> None:
    (words,) = installed(tmp_path, code=0)
    assert words[:7] == ["uv", "/one,/two", "file:///a", "file:///b", "pins.txt", "pip", "install"]
    assert words[-2:] == ["-r", "list.txt"]


def test_what_uv_cannot_install_pip_does(tmp_path: Path) -> None:
    _, words = installed(tmp_path, code=2)
    assert words[:4] == ["pip", "-m", "pip", "install"]
    assert words[-2:] == ["-r", "list.txt"]


# --- make and the documents -------------------------------------------------------------------------------------------


def test_help_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert set(phony.group(1).split()) - {"FORCE"} == {name for name in targets() if not name.endswith("%")}
    shown = run("make", "--no-print-directory", "help").stdout
    assert len(targets()) > 10
    assert all(f"make {name} " in shown and text in shown for name, text in targets().items())


def test_demo_installs_the_core_alone_and_test_adds_the_tools(tmp_path: Path) -> None:
    fresh = (f"VENV={tmp_path}/venv", "TORCH=auto")
    demo = run("make", "-n", "demo", *fresh).stdout
    assert "requirements/core.txt" in demo
    assert "requirements/test.txt" not in demo
    assert demo.index("install_torch.sh") < demo.index("core.txt") < demo.index("-m src.demo")
    benchmarks = run("make", "-n", "setup-evaluation", *fresh).stdout
    assert benchmarks.index("install_torch.sh") < benchmarks.index("-r requirements/evaluation.txt")
    assert "requirements/test.txt" not in benchmarks
    assert "requirements/evaluation.txt" not in demo
    assert "requirements/cluster.txt" not in demo + benchmarks
    test = run("make", "-n", "test", *fresh).stdout
    assert "-r requirements/cluster.txt" in test
    steps = ("core.txt", "evaluation.txt", "requirements/test.txt", "-m ruff check", "-m mypy", "-m pytest")
    assert [test.index(step) for step in steps] == sorted(test.index(step) for step in steps)


def test_lock_finds_the_interpreter_that_make_names(tmp_path: Path) -> None:
    """make gives a path relative to the repository; the script works in another folder."""
    (tmp_path / "python").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    for given in (tmp_path / "python", os.path.relpath(tmp_path / "python", ROOT)):
        assert run("sh", str(REQUIREMENTS / "lock.sh"), str(given)).returncode == 3
    assert run("sh", str(REQUIREMENTS / "lock.sh"), "python", PATH=f"{tmp_path}:{ENVIRONMENT['PATH']}").returncode == 3


def test_clean_keeps_results_runs_and_cache() -> None:
    commands = run("make", "-n", "clean").stdout
    removed = re.findall(r"rm -rf ([^\n{]+)", commands)
    assert removed
    assert not set(" ".join(removed).split()) & {"results", "runs", "cache", "results/records"}


def test_ci_runs_the_command_that_readme_gives() -> None:
    fenced = re.findall(r"```\w*\n(.*?)```", section("README.md", "Test"), re.DOTALL)
    assert fenced
    assert fenced[0].strip().split("#")[0].strip() == "make test"
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "make test"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


ROOMS = ("docs", "results", "conf", "experiments")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(found for room in ROOMS for found in (ROOT / room).rglob("*.md")))
)


def test_documents_are_all_walked() -> None:
    assert {"README.md", "CONTRIBUTING.md", "results/README.md", "docs/on_policy.md"} <= set(DOCUMENTS)
    assert len(DOCUMENTS) >= 10


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_existing_targets_and_paths(document: str) -> None:
    text = (ROOT / document).read_text()
    named = set(re.findall(r"(?:`|^ {0,4}|\$ )make ([a-z-]+)", text, re.MULTILINE))
    assert named <= {name.rstrip("%") for name in targets()}
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    assert missing == []
