"""Engines for joblib, and so for scikit-learn: `joblib.parallel_config(backend="enginery")`.

    import enginery.joblib_backend

    with joblib.parallel_config(backend="enginery", client=client):
        search.fit(X, y)

Importing this module registers the backend. It takes joblib, which engines need too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joblib.parallel import (
    AutoBatchingMixin,
    ParallelBackendBase,
    SequentialBackend,
    register_parallel_backend,
)

from enginery.client import Client, connect
from enginery.operation import stop_patiently

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from enginery._feeder import EngineFuture
    from enginery.executor import ClusterExecutor
    from enginery.tasks import TaskView

_FIRST_ENGINE = 10.0  # seconds to wait for an engine if there is none


class EngineryBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Runs joblib's batches as tasks on engines.

    `client` is a Client or, for settings of the tasks such as `where` and `retries`, what `client.tasks(...)`
    returns; without it the cluster that `connect()` finds is used. `n_jobs` is -1, all engines, unless it is
    said. What an error makes superfluous is cancelled and, if it runs, interrupted. Inside a call joblib is
    sequential.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, client: Client | TaskView | None = None, **options: Any) -> None:
        """Made by `joblib.parallel_config`."""
        super().__init__(**options)
        self._tasks: Client | TaskView = connect() if client is None else client
        self._client = self._tasks if isinstance(self._tasks, Client) else self._tasks.client
        self._executor: ClusterExecutor | None = None
        self._futures: set[EngineFuture[Any]] = set()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run at a time; -1 means one for each engine, -2 one less."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        engines = len(self._client) or len(self._client.wait_for_engines(1, _FIRST_ENGINE))
        return max(1, engines + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Begin a run of `Parallel`."""
        self.parallel = parallel
        workers = self.effective_n_jobs(n_jobs)
        self._executor = self._tasks.executor(workers if workers < len(self._client) else None)
        return workers

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Future[Any]], object] | None = None
    ) -> EngineFuture[Any]:
        """Send a batch."""
        assert self._executor is not None, "joblib configures a backend before it submits"
        future = self._executor.submit(func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Return what a batch returned, or raise what it raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what waits, and interrupt what runs."""
        self.terminate()
        sent = [future.operation for future in list(self._futures)]
        running = [operation for operation in sent if operation is not None and not operation.done()]
        if running:
            stop_patiently(running, None, interrupt_only=True)
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def terminate(self) -> None:
        """End a run of `Parallel`. Its calls are done, or nobody waits for them any more."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        self.reset_batch_stats()

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Return what joblib uses inside a call: the engine is one worker."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


register_parallel_backend("enginery", EngineryBackend)
