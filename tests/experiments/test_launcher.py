"""Jobs as processes: order, failures, two launchers over one folder, and what kills leave behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from src.experiments.jobs import Job
from tests.experiments.launch import done, four, job, launcher
from tests.support import start


class Watch:
    """Keeps what was said; asks to stop when ``until`` holds."""

    def __init__(self, until: Callable[[], bool] = lambda: False) -> None:
        self.said: list[str] = []
        self.until = until

    @property
    def stopping(self) -> bool:
        return self.until()

    def say(self, text: str) -> None:
        self.said.append(text)

    def look(self) -> None:
        """Nothing to show."""


def starts(*jobs: Job) -> list[int]:
    """How often each job was started."""
    return [len((one.run / "starts").read_text().split()) if (one.run / "starts").exists() else 0 for one in jobs]


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_each_job_runs_once_after_those_it_needs_and_a_second_call_starts_nothing(tmp_path: Path) -> None:
    jobs, watch = four(tmp_path, "0"), Watch()
    assert launcher(tmp_path).run(list(reversed(jobs)), watch)
    assert starts(*jobs) == [1, 1, 1, 1]
    ended = [(one.run / "done").stat().st_mtime_ns for one in jobs]
    begun = [(one.run / "starts").stat().st_mtime_ns for one in jobs]
    assert all(begun[number] > ended[need] for number, need in ((1, 0), (2, 0), (3, 2)))
    assert watch.said[-1].startswith("done     [4/4] ")
    assert [launcher(tmp_path).state(one) for one in jobs] == ["done"] * 4
    assert launcher(tmp_path).run(jobs, Watch())
    assert starts(*jobs) == [1, 1, 1, 1]


def test_a_failed_job_holds_up_what_needs_it_alone_and_is_tried_again_by_the_next_call(tmp_path: Path) -> None:
    bad = job(tmp_path, "bad", "code=3")
    child = job(tmp_path, "child", needs=(bad,))
    grandchild = job(tmp_path, "grandchild", needs=(child,))
    other, watch = job(tmp_path, "other", "seconds=0.3"), Watch()
    jobs = [bad, child, grandchild, other]
    assert not launcher(tmp_path, 1).run(jobs, watch)
    assert starts(*jobs) == [1, 0, 0, 1]
    here = launcher(tmp_path)
    assert [here.state(one) for one in jobs] == ["failed", "missing", "missing", "done"]
    assert "    the disk is full" in watch.said
    assert here.tail(bad, 1) == ["the disk is full"]
    assert here.note(bad)["code"] == 3
    assert not here.run([bad], Watch())
    assert starts(bad) == [2]


def test_a_job_that_ends_well_without_its_result_has_failed(tmp_path: Path) -> None:
    here, one = launcher(tmp_path), job(tmp_path, "one")
    here.done = lambda _: False
    watch = Watch()
    assert not here.run([one], watch)
    assert here.note(one)["state"] == "failed"


def test_jobs_that_are_asked_to_stop_write_what_they_have_and_go_on_later(tmp_path: Path) -> None:
    jobs = four(tmp_path, "60")
    watch = Watch(until=lambda: (jobs[0].run / "starts").exists())
    assert not launcher(tmp_path).run(jobs, watch)
    assert (jobs[0].run / "checkpoint").exists()
    assert launcher(tmp_path).state(jobs[0]) == "missing"
    assert not [line for line in watch.said if line.startswith("FAILED")]
    again = four(tmp_path, "0")
    assert launcher(tmp_path).run(again, Watch())
    assert starts(*again) == [2, 1, 1, 1]


def test_two_processes_share_the_jobs_and_the_workers_of_the_machine(tmp_path: Path) -> None:
    both = [start("tests.experiments.launch", str(tmp_path), "0.3") for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert starts(*four(tmp_path, "0.3")) == [1, 1, 1, 1]
    assert sum(text.count("started") for text in said) == 4
    assert len(list((tmp_path / ".jobs").glob(".worker-*"))) == 2


def test_no_more_jobs_run_than_the_machine_has_workers_for_all_launchers(tmp_path: Path) -> None:
    jobs = [job(tmp_path, f"job{number}", "seconds=0.2") for number in range(3)]
    first = launcher(tmp_path, 1)
    lock = first.worker()
    assert lock is not None
    watch, until = Watch(), time.monotonic() + 0.5
    watch.until = lambda: time.monotonic() > until
    assert not launcher(tmp_path, 1).run(jobs, watch)
    assert starts(*jobs) == [0, 0, 0]
    os.close(lock)
    assert launcher(tmp_path, 1).run(jobs, Watch())


def test_what_another_process_saw_failing_is_not_run_again_by_us(tmp_path: Path) -> None:
    bad = job(tmp_path, "bad", "seconds=0.3", "code=1")
    here, there, watch = launcher(tmp_path), launcher(tmp_path), Watch()
    place = there.place(bad)
    place.mkdir(parents=True)
    began = time.time()
    assert not there.run([bad], Watch())
    assert here.begin(bad, began, watch) == "failed"
    assert watch.said == [f"FAILED in another process: {bad.command}"]
    assert here.begin(bad, time.time(), watch) == "started"  # the next call tries again
    here.stop()


def test_when_the_launcher_is_killed_its_job_goes_on_and_nobody_repeats_it(tmp_path: Path) -> None:
    jobs = four(tmp_path, "1.5")
    process = start("tests.experiments.launch", str(tmp_path), "1.5")
    wait_for(lambda: (jobs[0].run / "starts").exists())
    process.kill()
    process.communicate()
    assert launcher(tmp_path).state(jobs[0]) == "running"
    assert launcher(tmp_path).run(four(tmp_path, "0"), Watch())
    assert starts(*jobs) == [1, 1, 1, 1]


def test_a_job_that_is_killed_with_its_launcher_is_begun_again(tmp_path: Path) -> None:
    jobs = four(tmp_path, "60")
    process = start("tests.experiments.launch", str(tmp_path), "60")
    wait_for(lambda: (jobs[0].run / "starts").exists())
    process.kill()
    process.communicate()
    pid = int((jobs[0].run / "starts").read_text())
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: launcher(tmp_path).state(jobs[0]) == "missing")
    assert launcher(tmp_path).run(four(tmp_path, "0"), Watch())
    assert starts(*jobs) == [2, 1, 1, 1]


def test_sigterm_reaches_the_jobs(tmp_path: Path) -> None:
    base = four(tmp_path, "60")[0]
    process = start("tests.experiments.launch", str(tmp_path), "60")
    wait_for(lambda: (base.run / "starts").exists())
    time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=30) == 1
    assert (base.run / "checkpoint").exists()
    assert gone(int((base.run / "starts").read_text()))
    process.communicate()


def test_the_id_follows_from_what_a_job_does(tmp_path: Path) -> None:
    one = job(tmp_path, "one")
    assert one.id == job(tmp_path, "one", "seconds=3").id
    assert one.id != job(tmp_path, "two").id
    assert one.id != Job("mt_bench", "src.evaluation.mt_bench", (), one.run, (), "abc").id
    assert not done(one)
