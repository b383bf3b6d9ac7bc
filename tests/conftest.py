"""What every test shares: in CI nothing is skipped, and no test leaves a process behind."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from enginery._channel import prepare_grpc

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

IN_CI = os.environ.get("CI") == "true"
_SETTLING = 5.0  # seconds that children get to end after the last test


def pytest_configure(config: pytest.Config) -> None:
    """Set gRPC up as every program of ours does, before a test imports it by itself.

    Not in a process that only hands tests out: those that run them would take what is set for the user's.
    """
    is_worker = hasattr(config, "workerinput")
    if is_worker or not getattr(config.option, "numprocesses", None):
        prepare_grpc()


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
    """Fail the run if a child process outlives the tests, and end it."""
    yield
    deadline = time.monotonic() + _SETTLING
    while (left := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    lines = [_describe(child) for child in left]
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    assert not lines, f"processes left behind: {lines}"


def _children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if _counts(child)]


def _counts(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in _describe(process)
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid} (gone)"
