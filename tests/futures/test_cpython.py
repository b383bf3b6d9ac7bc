"""CPython's own tests of executors, run on ours: those of the Python that runs this.

Some builds of Python come without them. Then those of Debian's package for this version are taken
(libpython3.11-testsuite, which `.ci/run` installs); without it there is nothing to run here. Each test that is
left out, or held to another error, is named in one of the tables below, with its reason.
"""

from __future__ import annotations

import concurrent.futures
import gc
import importlib
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from enginery.errors import EngineryError, SerializationError
from enginery.executor import ClusterExecutor, on_any
from tests.futures.conftest import DEBIAN, HAS_MORE_TESTS, SPEED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future
    from types import ModuleType

    import enginery

_PRINTS = "its script takes the executor from concurrent.futures by name; test_executor.py has the rule"
_THREADS = "looks at the pool's own threads or processes, and here there are none"
_NO_EXECUTOR = "is about as_completed alone, and uses no executor"
_FORK = "needs semaphores that workers inherit by fork, and engines are no children of the caller"

LEFT_OUT = {
    "test_interpreter_shutdown": _PRINTS,
    "test_submit_after_interpreter_shutdown": _PRINTS,
    "test_hang_gh83386": _PRINTS,
    "test_max_workers_too_large": "is for Windows",
    "test_killed_child": "expects that one process takes all work along: a kernel that dies takes its own "
    "call alone, and a new one runs the next; test_executor.py has the rule",
    "test_traceback": "wants the standard library's own type of cause; ours is RemoteError, and test_executor "
    "has the rule",
    "test_ressources_gced_in_workers": "needs a multiprocessing manager, and its secret, on the engines",
    "test_saturation": _FORK,
    "test_idle_process_reuse_one": _THREADS,
    "test_idle_process_reuse_multiple": _THREADS,
    "test_max_tasks_per_child": _THREADS,
    "test_max_tasks_per_child_defaults_to_spawn_context": _THREADS,
    "test_max_tasks_early_shutdown": _THREADS,
    "test_python_finalization_error": _THREADS,
    "test_processes_terminate": _FORK,
    "test_del_shutdown": _THREADS + "; test_executor.py has the rule",
    "test_shutdown_no_wait": _THREADS + "; test_executor.py has the rule",
    "test_context_manager_shutdown": _THREADS + "; test_executor.py has the rule",
    "test_shutdown_deadlock_pickle": _THREADS,
    "test_free_reference_yielded_future": _NO_EXECUTOR,
    "test_correct_timeout_exception_msg": _NO_EXECUTOR,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": _THREADS,
}
"""Tests of the standard library that make no sense here, and why."""

OTHER_ERRORS: dict[str, type[BaseException] | tuple[type[BaseException], ...]] = {
    "BrokenProcessPool": EngineryError,  # KernelDied, or what could not be decoded; the executor goes on
    "PicklingError": SerializationError,
    "SystemExit": EngineryError,  # a RemoteError that says so: what user code does never ends the client
}
"""Errors that tests of process pools expect, and what it is here. For the tests of test_deadlock."""

_client: enginery.Client


class _Executor(ClusterExecutor):
    """The executor as CPython's tests make it."""

    def __init__(self, max_workers: int | None = None, mp_context: object = None, **options: Any) -> None:
        super().__init__(on_any(_client.tasks()), lambda: len(_client), max_workers, **options)

    def map(self, *args: Any, timeout: float | None = None, **options: Any) -> Iterator[Any]:
        """Wait for as long as the engines' sleeps are shorter."""
        return super().map(*args, timeout=None if timeout is None else timeout / SPEED, **options)


def _module(name: str) -> ModuleType | None:
    """Return one of CPython's modules of tests: of some, or until Python 3.11.5 the only one."""
    try:
        tests = importlib.import_module("test.test_concurrent_futures")
        return importlib.import_module(f"{tests.__name__}.{name}") if hasattr(tests, "__path__") else tests
    except ModuleNotFoundError:
        return None


def _wait_shorter(fs: Iterable[Future[Any]], timeout: float | None = None, **options: Any) -> object:
    """Wait, as `map` above, for as long as the engines' sleeps are shorter."""
    return concurrent.futures.wait(fs, timeout if timeout is None else timeout / SPEED, **options)


def _make(name: str, *tests: type, **attributes: object) -> None:
    """Define a test case of this module: CPython's tests with our executor."""
    util = _module("util")
    assert util is not None
    left_out = dict.fromkeys(LEFT_OUT)
    made = type(name, (*tests, util.ExecutorMixin, util.BaseTestCase), {**attributes, **left_out})
    made.__module__ = __name__
    globals()[name] = made


if _module("executor") is None and HAS_MORE_TESTS:
    importlib.import_module("test").__path__.append(DEBIAN)

if (_tests := _module("executor")) is not None:

    def _of(name: str) -> Any:
        module = _module(name)
        assert module is not None
        return module

    _ours: dict[str, object] = {"executor_type": _Executor, "get_context": lambda _: None}
    _pool = _of("test_process_pool").ProcessPoolExecutorTest
    _make("ExecutorTest", _tests.ExecutorTest, **_ours, test_map_chunksize=_pool.test_map_chunksize)
    _make("AsCompletedTest", _of("test_as_completed").AsCompletedTests, **_ours)
    _make("WaitTest", _of("test_wait").WaitTests, **_ours)
    _make("ShutdownTest", _of("test_shutdown").ExecutorShutdownTest, **_ours)
    _make("InitializerTest", _of("test_init").InitializerMixin, **_ours)
    _make("FailingInitializerTest", _of("test_init").FailingInitializerMixin, **_ours)
    _make("DeadlockTest", _of("test_deadlock").ExecutorDeadlockTest, **_ours)

    if sys.version_info < (3, 14):  # later ones have more tests of processes

        def test_whatever_is_left_out_has_its_reason() -> None:
            """Every test of the standard library's process pool is run here, or stands in the table."""
            theirs = {*dir(_pool), *dir(_of("test_shutdown").ProcessPoolShutdownTest)}
            ours = {*dir(globals()["ExecutorTest"]), *dir(globals()["ShutdownTest"])}
            assert {name for name in theirs - ours if name.startswith("test_")} <= set(LEFT_OUT)


@pytest.fixture(scope="module", autouse=True)
def executors(client: enginery.Client) -> Iterator[None]:
    """Give the executors their client, and the tests of crashes the errors that are meant here."""
    global _client
    _client = client
    patch = pytest.MonkeyPatch()
    if (deadlock := _module("test_deadlock")) is not None:
        for name, ours in OTHER_ERRORS.items():
            patch.setattr(deadlock, name, ours, raising=False)
    if _tests is not None and not _tests.__name__.endswith("executor"):  # the only one, whose sleeps are long
        theirs = {**vars(concurrent.futures), "wait": _wait_shorter}
        patch.setattr(_tests, "futures", SimpleNamespace(**theirs))
    gc.freeze()  # the tests collect garbage again and again, among all that other tests have loaded
    yield
    gc.unfreeze()
    patch.undo()
