"""What every test shares: in CI nothing is skipped, and tests leave no process behind, interrupted or not."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from enginery._channel import environment, prepare_grpc
from tests import leftovers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

prepare_grpc()  # as every program of ours does, before the conftest of a folder or a test imports it by itself

IN_CI = os.environ.get("CI") == "true"
_RUN = pytest.StashKey[str]()
_SETTLING = 5.0  # seconds that processes get to end after the last test


def pytest_configure(config: pytest.Config) -> None:
    """Mark what this run starts, and tidy up whoever ends it.

    One that only hands tests out is not set up for gRPC: those that run them would take it for the user's.
    """
    worker = getattr(config, "workerinput", None)
    if worker is None and getattr(config.option, "numprocesses", None):
        for name in os.environ.keys() - environment().keys():
            del os.environ[name]
    config.stash[_RUN] = leftovers.mark(worker and worker["workerid"])
    if worker is None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends tests as Ctrl-C does: they tidy up


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the processes that run tests at once, if they are interrupted: pytest-xdist would wait for theirs."""
    if exitstatus == pytest.ExitCode.INTERRUPTED and getattr(session.config.option, "numprocesses", None):
        _end_all(session.config)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End what is left of tests that were interrupted; those that were not have ended theirs, or failed."""
    _end_all(config)


def _end_all(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    for process in leftovers.of_the_run(config.stash[_RUN]):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure; an expected failure (xfail) is not a skip."""
    if IN_CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"a test was skipped, and in CI all must run: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See `_forbid_skip`; a skipped test counts as failed."""
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """See `_forbid_skip`; a skipped module counts as failed."""
    report = yield
    _forbid_skip(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail the run if a process that tests started outlives them, and end it."""
    yield
    deadline = time.monotonic() + _SETTLING
    while (left := leftovers.of_this_process()) and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = [leftovers.describe(process) for process in left]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not lines, f"processes left behind: {lines}"
