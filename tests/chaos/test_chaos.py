"""Chaos, in its smoke form, and that its judge would notice."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from tests.architecture.source import ROOT
from tests.chaos import schedule
from tests.chaos.faults import Event
from tests.chaos.ledger import ANY_ENGINE, UNKNOWN, Heard, Ran, Sent
from tests.chaos.verdict import Judge, Verdict

LEASE = 15.0
HOSTS = ["host-0", "host-1"]
CLIENTS = ["worker-0", "caller"]


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_nothing_is_lost_or_doubled() -> None:
    """While processes are killed and links break, each job runs at most once and is answered once."""
    options = ["--minutes", "0.35", "--every", "1", "--lease", "9", "--seed", "1"]
    command = [sys.executable, "-m", "tests.chaos", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost       0\ndoubled    0\n" in done.stdout


def plan(seed: int, seconds: float = 600.0) -> list[schedule.Fault]:
    """Return a schedule of all kinds."""
    return schedule.plan(
        seed, seconds, hosts=HOSTS, clients=CLIENTS, kinds=schedule.KINDS, lease=LEASE, every=2.0
    )


def test_a_schedule_is_a_function_of_its_seed() -> None:
    """The same seed gives the same faults, another gives others."""
    assert plan(1) == plan(1)
    assert plan(1) != plan(2)


def test_a_schedule_uses_every_kind_and_strikes_a_machine_once_at_a_time() -> None:
    """No kind comes much more often than another; a machine is well again before its next fault."""
    faults = plan(3)
    counts = Counter(fault.kind for fault in faults)
    assert set(counts) == set(schedule.KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1
    free_at: dict[str, float] = {}
    for fault in faults:
        assert fault.at >= free_at.get(fault.machine, 0.0)
        free_at[fault.machine] = fault.at + fault.seconds + schedule.SETTLING


# ---- the judge


def sent(number: int = 1, *heard: Heard, kind: str = "quick") -> Sent:
    """Return a job sent at time 100 to engine 0 on host-0."""
    return Sent(f"w.0.{number}", f"id-{number}", 0, "host-0", kind, 100.0 + number, list(heard))


def heard(outcome: str = "ok", nonce: str = "", time: float = 120.0) -> Heard:
    """Return an answer."""
    return Heard(outcome, nonce, "", time)


def ran(number: int = 1, nonce: str = "n1", *, pid: int = 7, time: float = 110.0, engine_id: int = 0) -> Ran:
    """Return an execution of that job."""
    return Ran(f"w.0.{number}", nonce, pid, engine_id, 0, time)


def judge(jobs: list[Sent], runs: list[Ran], events: list[Event] | None = None) -> Verdict:
    """Return the verdict on it."""
    return Judge(jobs, runs, events or [], lease=LEASE).judge()


def broken(jobs: list[Sent], runs: list[Ran], events: list[Event] | None = None) -> set[str]:
    """Return what the judge says was broken."""
    return set(judge(jobs, runs, events).broken)


def test_what_went_well_is_no_complaint() -> None:
    """An answer that is of the only run is fine, and so is what never ran and is said not to."""
    assert not broken([sent(1, heard("ok", "n1")), sent(2, heard("QUEUE_CLEARED"))], [ran()])
    assert not broken([sent(1, heard("OPERATION_NOT_FOUND"))], [])
    assert not broken([sent(1, heard("OPERATION_TIMED_OUT"), kind="endless")], [ran()])
    # Its host came back after the lease, was given another id, and went on with what waited.
    cut = Event("link cut for long", "host-0", 101.0, 150.0)
    late = [ran(1, pid=7), ran(2, "n2", pid=7, time=150.0, engine_id=5)]
    assert not broken([sent(1, heard("ok", "n1")), sent(2, heard("ENGINE_LOST", time=140.0))], late, [cut])


@pytest.mark.parametrize(
    ("jobs", "runs", "what"),
    [
        ([sent(1)], [ran()], "no answer"),
        ([sent(1, heard("ok", "n1"))], [ran(), ran(1, "n2")], "ran twice"),
        ([], [ran(), ran()], "ran twice"),
        ([sent(1, heard("ok", "n1"), heard("ok", "n1"))], [ran()], "answered twice"),
        ([sent(1, heard("ok", "n2"))], [ran()], "answer of another run"),
        ([sent(1, heard("ok", "n1"))], [], "answer of another run"),
        ([sent(1, heard("ok", ""))], [ran()], "answer spoilt"),
        ([sent(1, heard("QUEUE_CLEARED"))], [ran()], "cleared, but ran"),
        ([sent(1, heard("OPERATION_CANCELLED"))], [ran()], "stopped, but nobody asked"),
        ([sent(1, heard("CONTROLLER_LOST"))], [], "failed"),
        ([sent(1, heard("KERNEL_DIED"))], [ran()], "lost without cause"),
        ([sent(1, heard("OPERATION_NOT_FOUND"))], [ran()], "lost without cause"),
        ([sent(1, heard("ok", "n1"))], [ran(engine_id=3)], "ran elsewhere"),
    ],
)
def test_the_judge_notices(jobs: list[Sent], runs: list[Ran], what: str) -> None:
    """Each promise, if it were broken, would be called so."""
    assert what in broken(jobs, runs)


def test_order_is_judged_for_each_client_and_engine() -> None:
    """A later job that ran before an earlier one is out of order, unless the earlier was lost."""
    jobs = [sent(1, heard("ok", "n1")), sent(2, heard("ok", "n2"))]
    runs = [ran(2, "n2", time=110.0), ran(1, "n1", time=111.0)]
    assert broken(jobs, runs) == {"out of order"}
    jobs[0].heard[:] = [heard("KERNEL_DIED")]
    killed = Event("kernel killed", "host-0", 111.5, 111.5, [7])
    assert not broken(jobs, runs, [killed])


def test_a_loss_is_excused_by_the_death_of_its_own_kernel_alone() -> None:
    """The kernel that ran it, before the answer; not that of another engine, nor a death that came later."""
    lost = [sent(1, heard("KERNEL_DIED", time=120.0))]
    assert judge(lost, [ran()], [Event("kernel killed", "host-0", 115.0, 115.0, [7])]).lost_with_engine == 1
    assert broken(lost, [ran()], [Event("kernel killed", "host-0", 115.0, 115.0, [8])])
    assert broken(lost, [ran()], [Event("kernel killed", "host-0", 121.0, 121.0, [7])])
    assert broken(lost, [ran()], [Event("kernel frozen", "host-0", 115.0, 117.0)])


def test_what_is_read_again_is_what_was_heard() -> None:
    """Unless the journal could not have it: then it may be forgotten, but never be another."""
    answered = [sent(1, heard("ok", "n1"))]

    def broken_by(again: Heard, *events: Event) -> set[str]:
        return set(Judge(answered, [ran()], list(events), lease=LEASE, again={"w.0.1": again}).judge().broken)

    forgotten, killed = heard("OPERATION_NOT_FOUND"), Event("controller killed", "controller", 119.0, 121.0)
    assert not broken_by(heard("ok", "n1", time=200.0))
    assert not broken_by(forgotten, killed)
    assert broken_by(forgotten) == {"told otherwise later"}
    assert broken_by(heard("ok", "n2"), killed) == {"told otherwise later"}


def test_a_loss_is_excused_by_a_lease_that_ended() -> None:
    """Only if its machine, or the controller, was out of reach for that long on end."""
    lost = [sent(1, heard("ENGINE_LOST", time=160.0))]
    assert judge(lost, [], [Event("link cut for long", "host-0", 110.0, 140.0)]).lost_with_lease == 1
    assert broken(lost, [], [Event("link cut for long", "host-1", 110.0, 140.0)])
    assert broken(lost, [], [Event("link cut", "host-0", 130.0, 136.0)])
    assert broken(lost, [], [Event("kernel frozen", "host-0", 110.0, 140.0)])
    assert broken(lost, [], [])


# ---- tasks


def task(number: int = 1, *heard: Heard, attempts: int = 1, after: str = "", kind: str = "quick") -> Sent:
    """Return a task sent at time 100."""
    name = f"t.0.{number}"
    return Sent(name, f"id-{number}", ANY_ENGINE, UNKNOWN, kind, 100.0 + number, list(heard), attempts, after)


def attempt(number: int = 1, nonce: str = "n1", *, pid: int = 7, time: float = 110.0) -> Ran:
    """Return an execution of that task."""
    return Ran(f"t.0.{number}", nonce, pid, 0, ANY_ENGINE, time)


def test_a_task_runs_again_only_if_it_was_lost_and_may() -> None:
    """Its kernel was killed before it ran again, and not more often than its caller said."""
    again = [task(1, heard("ok", "n2"), attempts=2)]
    runs = [attempt(), attempt(1, "n2", pid=8, time=114.0)]
    killed = Event("kernel killed", "host-0", 112.0, 112.0, [7])
    assert not broken(again, runs, [killed])
    assert broken(again, runs) == {"ran again without cause"}
    assert broken([task(1, heard("ok", "n2"))], runs, [killed]) >= {"ran twice"}
    assert not broken([task(1, heard("raised", "n2"), attempts=2, kind="raises")], runs)
    assert broken([task(1, heard("TASK_LOST"), attempts=2)], runs) >= {"lost without cause"}
    assert not broken([task(1, heard("abandoned"), attempts=2)], runs[:1])


def test_a_task_is_not_run_only_if_what_it_comes_after_failed() -> None:
    """And then it has not run."""
    behind = task(2, heard("DEPENDENCY_FAILED"), after="t.0.1")
    runs = [attempt()]
    assert not broken([task(1, heard("raised", "n1"), kind="raises"), behind], runs)
    assert broken([task(1, heard("ok", "n1")), behind], runs) == {"not run without cause"}
    late = [*runs, attempt(2, "n2")]
    assert broken([task(1, heard("raised", "n1"), kind="raises"), behind], late) == {"not run without cause"}
