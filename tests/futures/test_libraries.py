"""Libraries that take executors or backends: joblib with scikit-learn, and dask."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import dask.array
import joblib
import numpy as np
import pytest
from dask.delayed import delayed
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import enginery
import enginery.joblib_backend
from tests.futures.conftest import SPEED

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def backend(client: enginery.Client) -> Iterator[None]:
    with joblib.parallel_config(backend="enginery", client=client):
        yield


def _where(_: int) -> int:
    return enginery.get_engine().id


def test_a_grid_search_runs_on_the_engines(client: enginery.Client, backend: None) -> None:
    """scikit-learn finds the same as it does alone, and leaves nothing running."""
    x, y = make_classification(60, random_state=0)
    grid = {"C": [0.1, 1.0, 10.0]}
    search = GridSearchCV(LogisticRegression(), grid, cv=2).fit(x, y)
    with joblib.parallel_config(backend="sequential"):
        alone = GridSearchCV(LogisticRegression(), grid, cv=2).fit(x, y)
    assert search.best_params_ == alone.best_params_
    assert np.array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    assert all(status.pending is None and not status.queue for status in client[:].queue_status())


def test_joblib_uses_all_engines_unless_it_is_told(client: enginery.Client, backend: None) -> None:
    """`n_jobs` is every engine by default; -2 is one less; 0 makes no sense."""
    assert joblib.Parallel().n_jobs == -1
    assert joblib.effective_n_jobs(-1) == len(client)
    assert joblib.effective_n_jobs(-2) == len(client) - 1
    assert set(joblib.Parallel(batch_size=1)(joblib.delayed(_nap)(n) for n in range(8))) == set(client.ids)
    with pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.Parallel(n_jobs=0)(joblib.delayed(abs)(n) for n in range(2))


def _nap(n: int) -> int:
    time.sleep(0.1)
    return _where(n)


def test_an_error_ends_a_run_and_what_runs_beside_it(client: enginery.Client, backend: None) -> None:
    """It is raised as itself, other calls are interrupted or never begin, and the next run works."""
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        joblib.Parallel(batch_size=1)(joblib.delayed(_fail_or_sleep)(n) for n in range(6))
    assert time.monotonic() - began < 10
    assert joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(20)) == list(range(20))


def _fail_or_sleep(n: int) -> float:
    if n:
        time.sleep(20 * SPEED)
    return 1 / n


def test_a_batch_may_be_large(backend: None) -> None:
    """joblib puts arguments into functions; what is over the limit of tasks travels all the same."""
    data = np.ones(1_000_000)
    assert joblib.Parallel(batch_size=1)(joblib.delayed(np.sum)(data * n) for n in range(3)) == [0, 1e6, 2e6]


def test_joblib_inside_a_call_is_sequential(backend: None) -> None:
    """An engine is one worker: nested calls run on it, one after the other."""
    ids = joblib.Parallel(batch_size=1)(joblib.delayed(_nested)(n) for n in range(3))
    assert all(len(set(inner)) == 1 for inner in ids)


def _nested(_: int) -> list[int]:
    return list(joblib.Parallel(n_jobs=2)(joblib.delayed(_where)(n) for n in range(3)))


def test_settings_of_tasks_are_those_of_the_batches(client: enginery.Client) -> None:
    """Instead of a client there may be what `client.tasks(...)` returns."""
    client[client.ids[0]].set_properties({"favourite": True})
    view = client.tasks(where={"favourite": True})
    with joblib.parallel_config(backend="enginery", client=view):
        assert set(joblib.Parallel()(joblib.delayed(_where)(n) for n in range(6))) == {client.ids[0]}
    client[client.ids[0]].clear_properties()


def test_dask_computes_an_array(client: enginery.Client) -> None:
    """`scheduler=` takes the executor, with as many workers as there are engines."""
    array = dask.array.arange(10_000, chunks=1_000)
    with client.executor() as executor:
        assert executor._max_workers == len(client)
        assert int((array**2).sum().compute(scheduler=executor)) == sum(n * n for n in range(10_000))
        with pytest.raises(ZeroDivisionError):
            delayed(divmod)(1, 0).compute(scheduler=executor)
