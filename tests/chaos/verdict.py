"""The judge: reads what everybody wrote down, and says which promises were broken.

A promise is broken if a job ran twice, or a task again without having been lost, on the wrong engine or out of
turn; if its answer never came, came twice or is not that of its run; or if it was called lost although nothing
happened to its kernel, to its host, or for more than a lease to the way there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.ledger import ABANDONED, ANY_ENGINE, UNKNOWN
from tests.chaos.schedule import CONTROLLER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.chaos.faults import Event
    from tests.chaos.ledger import Heard, Ran, Sent

ANSWERED = frozenset({"ok", "raised"})
STOPPED = frozenset({"OPERATION_CANCELLED", "OPERATION_TIMED_OUT"})
CLEARED = frozenset({"QUEUE_CLEARED"})
LOST = frozenset({"KERNEL_DIED", "ENGINE_LOST", "ENGINE_STOPPED", "TASK_LOST"})
NEVER_SENT = frozenset(
    {"OPERATION_NOT_FOUND", "INVALID_ENGINE_ID", "NO_ENGINES_REGISTERED", "ENGINE_AWAY", "NOT_SENT"}
)
"""Answers that are right if the job did not run; if it did, its kernel must have died with it."""
NOTICED = 30.0  # seconds until what was done to a machine has shown at the latest: keepalive, and then some
RECOVERED = 6.0  # seconds until a machine is connected again: gRPC's longest pause, and then some
TOLD = 0.25  # seconds until the controller knows of an answer that a host has given
WRITTEN = 5.0  # seconds until the journal is up to date again after the disk was full
_KEPT_EXAMPLES = 12


@dataclass(slots=True)
class Verdict:
    """What a run came to."""

    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    executed: int = 0
    lost_with_engine: int = 0
    """Called lost, and rightly: the kernel or host was killed or stopped."""
    lost_with_lease: int = 0
    """Called lost, and rightly: there was no way to the engine for longer than the lease."""
    lost_with_disk: int = 0
    """Called lost, and rightly: the disk was full when the controller had to write down who its engines are."""
    read_again: int = 0
    """Answers that were asked for once more at the end."""
    forgotten: int = 0
    """Of these, those that could not be written down before their host was gone."""
    broken: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What was broken: what it is called, and each case of it."""

    @property
    def lost(self) -> int:
        """Results that were lost without cause."""
        return sum(len(self.broken.get(what, ())) for what in ("no answer", "lost without cause"))

    @property
    def doubled(self) -> int:
        """Jobs that ran twice or were answered twice."""
        return sum(
            len(self.broken.get(what, ()))
            for what in ("ran twice", "ran again without cause", "answered twice")
        )

    def __str__(self) -> str:
        """Show the figures, then what was broken."""
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())
        lines = [
            f"faults     {sum(self.faults.values())}: "
            + ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items())),
            f"operations {self.sent} sent, {self.executed} executions; {outcomes}",
            f"lost       {self.lost}",
            f"doubled    {self.doubled}",
        ]
        excuses = {"engine": self.lost_with_engine, "lease": self.lost_with_lease, "disk": self.lost_with_disk}
        lines.append("excused    lost with its " + ", ".join(f"{what} {n}" for what, n in excuses.items()))
        lines.append(f"read again {self.read_again}, of which {self.forgotten} were rightly forgotten")
        for what, cases in sorted(self.broken.items()):
            lines.append(f"BROKEN     {what}: {len(cases)}")
            lines.extend(f"           {case}" for case in cases[:_KEPT_EXAMPLES])
        return "\n".join(lines)


class Judge:
    """Judges one run from its notes."""

    def __init__(
        self,
        sent: Iterable[Sent],
        runs: list[Ran],
        events: list[Event],
        *,
        lease: float,
        again: Mapping[str, Heard] | None = None,
    ) -> None:
        """Take what was sent and heard, what ran, what was done to the machines, and what was read `again`."""
        self._again = again or {}
        self._sent = {one.name: one for one in sent}
        self._runs: dict[str, list[Ran]] = defaultdict(list)
        self._ids_of: dict[int, set[int]] = defaultdict(
            set
        )  # of engines, by kernel: a lost one may get another
        for run in runs:
            self._runs[run.name].append(run)
            self._ids_of[run.pid].add(run.engine_id)
        self._all_runs = runs
        self._events = events
        self._lease = lease
        self._verdict = Verdict()

    def judge(self) -> Verdict:
        """Return the verdict."""
        verdict = self._verdict
        verdict.faults = Counter(event.kind for event in self._events)
        verdict.sent = len(self._sent)
        verdict.executed = len(self._all_runs)
        for job in self._sent.values():
            self._judge_job(job, self._runs.get(job.name, []))
        for name, runs in self._runs.items():
            known = self._sent.get(name)
            if len(runs) > (known.attempts if known else 1):
                self._break("ran twice", f"{name} {known}: {runs}")
            for run in runs:
                if run.file_id not in (run.engine_id, ANY_ENGINE) and run.file_id not in self._ids_of.get(
                    run.pid, ()
                ):
                    self._break("ran elsewhere", f"{run}")
        self._judge_order()
        for name, heard in self._again.items():
            self._judge_memory(self._sent[name], heard)
        return verdict

    def _break(self, what: str, case: str) -> None:
        self._verdict.broken[what].append(case)

    def _judge_job(self, job: Sent, runs: list[Ran]) -> None:
        answer = job.answer
        if answer is not None and len(runs) > 1 and job.attempts > 1:
            runs = self._judge_attempts(job, runs)
        if answer is None:
            self._verdict.outcomes["no answer"] += 1
            self._break("no answer", f"{job}, ran: {runs}")
            return
        self._verdict.outcomes[answer.outcome] += 1
        settled = [one for one in job.heard if one.outcome not in NEVER_SENT]
        if len(settled) > 1:
            self._break("answered twice", f"{job}")
        if answer.outcome in ANSWERED:
            if not answer.nonce:
                self._break("answer spoilt", f"{job}")
            elif [run.nonce for run in runs] != [answer.nonce]:
                self._break("answer of another run", f"{job}, ran: {runs}")
        elif answer.outcome == "DEPENDENCY_FAILED":
            self._judge_dependency(job, runs)
        elif answer.outcome in CLEARED:
            if runs:
                self._break("cleared, but ran", f"{job}, ran: {runs}")
        elif answer.outcome in LOST or (answer.outcome in NEVER_SENT and runs):
            self._judge_loss(job, runs)
        elif answer.outcome in STOPPED:
            if job.kind not in ("endless", "cancelled"):
                self._break("stopped, but nobody asked", f"{job}")
        elif answer.outcome not in (*NEVER_SENT, ABANDONED):
            self._break("failed", f"{job}")

    def _judge_attempts(self, job: Sent, runs: list[Ran]) -> list[Ran]:
        """Judge the attempts of a task before the one that counts, which is returned."""
        answer = job.answer
        assert answer is not None
        *earlier, last = sorted(runs, key=lambda run: (run.nonce == answer.nonce, run.time))
        for run in earlier:
            if job.kind != "raises" and not self._is_excused(job, [run], answer.time):
                self._break("ran again without cause", f"{job}, ran: {runs}")
        return [last]

    def _judge_dependency(self, job: Sent, runs: list[Ran]) -> None:
        """What was not run since what it comes after failed has not run, and that has failed."""
        before = self._sent.get(job.after)
        if runs or (before is not None and before.answer is not None and before.answer.outcome == "ok"):
            self._break("not run without cause", f"{job}, ran: {runs}, after {before}")

    def _judge_loss(self, job: Sent, runs: list[Ran]) -> None:
        assert job.answer is not None
        if not self._is_excused(job, runs, job.answer.time):
            self._break("lost without cause", f"{job}, ran: {runs}")

    def _is_excused(self, job: Sent, runs: list[Ran], until: float) -> bool:
        """Return, and count, whether something was done to what ran a job that was lost."""
        since = min([job.time, *(run.time for run in runs)])
        if any(self._ended(event, job, runs) and event.begin <= until for event in self._since(since)):
            self._verdict.lost_with_engine += 1
        elif any(self._no_way(machine, since, until) for machine in self._machines_of(job)):
            self._verdict.lost_with_lease += 1
        elif self._journal_was_behind(since, until):
            self._verdict.lost_with_disk += 1
        else:
            return False
        return True

    def _since(self, time: float) -> list[Event]:
        """Return what was done to kernels and hosts that could have an effect at `time` or later."""
        return [event for event in self._events if event.killed and event.end + NOTICED + self._lease >= time]

    def _ended(self, event: Event, job: Sent, runs: list[Ran]) -> bool:
        """Return whether `event` killed the kernel of a job: exactly, as far as is known which that was."""
        if runs:
            return any(run.pid in event.killed for run in runs)
        if job.machine not in (event.machine, UNKNOWN):
            return False
        if job.engine_id == ANY_ENGINE:
            return True
        return any(job.engine_id in self._ids_of.get(pid, {job.engine_id}) for pid in event.killed)

    def _machines_of(self, job: Sent) -> set[str]:
        return {event.machine for event in self._events} if job.machine == UNKNOWN else {job.machine}

    def _journal_was_behind(self, since: float, until: float) -> bool:
        """Return whether a controller ended that could not write down who its engines are."""
        full = [event for event in self._events if event.kind == "disk full"]
        ends = [event for event in self._events if event.kind in ("controller killed", "controller stopped")]
        return any(
            disk.begin <= end.begin <= disk.end + WRITTEN and end.begin <= min(until, since + NOTICED)
            for disk in full
            for end in ends
        )

    def _no_way(self, machine: str, since: float, until: float) -> bool:
        """Return whether the engines of `machine` could not be reached for a lease on end, before `until`."""
        spans = sorted(
            (event.begin, min(event.end, until) + RECOVERED)
            for event in self._events
            if event.machine in (machine, CONTROLLER)
            and event.takes_away_the_way
            and event.begin <= until
            and event.end >= since - self._lease
        )
        reached = longest = 0.0
        begin = float("-inf")
        for start, stop in spans:
            if start > reached:
                begin = start
            reached = max(reached, stop)
            longest = max(longest, reached - begin)
        return longest >= self._lease

    def _judge_memory(self, job: Sent, again: Heard) -> None:
        """What is read again is what was heard, if it could be written down before its host was gone."""
        assert job.answer is not None
        self._verdict.read_again += 1
        if (again.outcome, again.nonce) == (job.answer.outcome, job.answer.nonce):
            return
        if again.outcome == "OPERATION_NOT_FOUND" and self._was_not_written(job.answer.time):
            self._verdict.forgotten += 1
        else:
            self._break("told otherwise later", f"{job}: {again}")

    def _was_not_written(self, time: float) -> bool:
        """Return whether an answer of `time` may be missing: on a full disk the old makes room for the new, and
        a host tells the controller of what was called directly a moment after it has answered."""
        return any(
            (event.kind == "disk full" and time <= event.end + WRITTEN)
            or (event.kind == "controller killed" and event.begin - WRITTEN <= time <= event.end)
            or (event.kind == "host killed" and event.begin - TOLD <= time <= event.begin + TOLD)
            for event in self._events
        )

    def _judge_order(self) -> None:
        """Answered jobs of one life of a client ran on one engine in the order in which they were sent."""
        last: dict[tuple[str, int], tuple[float, str]] = {}
        answered = (run for run in self._all_runs if run.file_id != ANY_ENGINE and self._is_answered(run.name))
        for run in sorted(answered, key=lambda run: run.time):
            client, _, number = run.name.rpartition(".")
            key = (client, run.engine_id)
            _, before = last.get(key, (0.0, f"{client}.0"))
            if int(before.rpartition(".")[2]) >= int(number):
                self._break("out of order", f"{run.name} ran after {before} on engine {run.engine_id}")
            last[key] = (run.time, run.name)

    def _is_answered(self, name: str) -> bool:
        job = self._sent.get(name)
        return job is not None and job.answer is not None and job.answer.outcome in ANSWERED
