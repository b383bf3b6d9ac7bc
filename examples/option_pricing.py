"""Prices of options by Monte Carlo: a grid of strikes and expiries, dealt out to engines, checked by a formula.

    enginery run examples/option_pricing.py -n 4    on a temporary cluster
    python examples/option_pricing.py               on the cluster that runs here, or else on a temporary one

The market is pushed to every engine, the strikes are scattered over them as a numpy array, each engine prices
its part for all expiries, and the parts are gathered into one array. The formula of Black and Scholes says what
the prices are.
"""

from __future__ import annotations

import argparse
import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import enginery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SPOT, RATE, VOLATILITY = 100.0, 0.05, 0.25
SEED = 2026
LEAST_PATHS = 10_000  # of fewer none may reach a far strike, and then there is no error to measure by
_BLOCK = 50_000  # paths at a time: small enough to stay in the cache of a processor


def price_calls(
    strikes: NDArray[np.float64], expiries: NDArray[np.float64], market: tuple[float, float, float], paths: int
) -> NDArray[np.float64]:
    """Return the price and the standard error of each call: shape (2, strikes, expiries).

    Every strike sees the same paths, so it does not matter which engine prices it.
    """
    spot, rate, volatility = market
    prices = np.empty((2, len(strikes), len(expiries)))
    for column, years in enumerate(expiries):
        random = np.random.default_rng([SEED, column])
        sums = np.zeros((2, len(strikes)))
        for begin in range(0, paths, _BLOCK):
            normal = random.standard_normal(min(_BLOCK, paths - begin))
            drift = (rate - volatility**2 / 2) * years
            final = spot * np.exp(drift + volatility * math.sqrt(years) * normal)
            for row, strike in enumerate(strikes):
                payoff = np.maximum(final - strike, 0.0)
                sums[:, row] += payoff.sum(), (payoff**2).sum()
        mean, square = sums / paths
        discount = math.exp(-rate * years)
        prices[:, :, column] = discount * mean, discount * np.sqrt((square - mean**2) / paths)
    return prices


def black_scholes(strike: float, years: float) -> float:
    """Return what a call is worth exactly."""
    deviation = VOLATILITY * math.sqrt(years)
    first = (math.log(SPOT / strike) + (RATE + VOLATILITY**2 / 2) * years) / deviation
    return SPOT * _normal(first) - strike * math.exp(-RATE * years) * _normal(first - deviation)


def _normal(x: float) -> float:
    """Return the chance that a standard normal variable is at most `x`."""
    return (1 + math.erf(x / math.sqrt(2))) / 2


def on_engines(
    client: enginery.Client, strikes: NDArray[np.float64], expiries: NDArray[np.float64], paths: int
) -> NDArray[np.float64]:
    """Price the grid on all engines at once, each a part of the strikes."""
    engines = client[:]
    engines.push({"expiries": expiries, "market": (SPOT, RATE, VOLATILITY), "paths": paths})
    engines.push_function({"price_calls": price_calls})
    engines.scatter("strikes", strikes)
    engines.execute("prices = price_calls(strikes, expiries, market, paths).transpose(1, 0, 2)")
    prices: NDArray[np.float64] = engines.gather("prices")  # one below the other, in the order of the strikes
    return prices.transpose(1, 0, 2)


@contextmanager
def a_client() -> Iterator[enginery.Client]:
    """Connect to the cluster that runs here, or start one for as long as this takes."""
    try:
        client = enginery.connect()
    except enginery.ControllerNotRunning:
        with enginery.Cluster() as cluster:
            yield cluster.client
        return
    with client:
        client.wait_for_engines(1, timeout=30)
        yield client


def report(
    console: Console, strikes: NDArray[np.float64], expiries: NDArray[np.float64], prices: object
) -> None:
    """Print the grid: some of the strikes, all of the expiries."""
    table = Table(title="Calls on a share at 100", box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII)
    table.add_column("strike", justify="right")
    for years in expiries:
        table.add_column(f"{years:g} years", justify="right")
    for row in np.linspace(0, len(strikes) - 1, min(6, len(strikes)), dtype=int):
        table.add_row(f"{strikes[row]:.1f}", *(f"{price:.3f}" for price in np.asarray(prices)[row]))
    console.print(table)


def main() -> None:
    """Price the grid twice, on engines and here, and compare both with the formula."""
    parser = argparse.ArgumentParser(description="Price a grid of options by Monte Carlo on engines.")
    parser.add_argument(
        "--paths", type=int, default=1_000_000, help="paths for each expiry (default: 1,000,000)"
    )
    parser.add_argument("--strikes", type=int, default=240, help="how many strikes (default: 240)")
    arguments = parser.parse_args()
    if arguments.strikes < 1:
        parser.error("--strikes: at least 1")
    if arguments.paths < LEAST_PATHS:
        parser.error(f"--paths: at least {LEAST_PATHS:,}")
    strikes = np.linspace(60.0, 140.0, arguments.strikes)
    expiries = np.array([0.25, 0.5, 1.0, 2.0])
    console = Console()
    with a_client() as client:
        engines = len(client)
        start = time.perf_counter()
        prices, errors = on_engines(client, strikes, expiries, arguments.paths)
        parallel = time.perf_counter() - start
    start = time.perf_counter()
    serial_prices, _ = price_calls(strikes, expiries, (SPOT, RATE, VOLATILITY), arguments.paths)
    serial = time.perf_counter() - start
    report(console, strikes, expiries, prices)
    console.print(
        f"{engines} engines: {parallel:.1f} s   serially: {serial:.1f} s   ({serial / parallel:.1f} x)"
    )
    if not np.array_equal(prices, serial_prices):
        raise SystemExit("the engines found other prices than the serial run")
    exact = np.array([[black_scholes(strike, years) for years in expiries] for strike in strikes])
    off = float(np.max(np.abs(prices - exact) / errors))
    console.print(f"Black-Scholes is within {off:.1f} standard errors everywhere.")
    if off > 5:  # one in a million, for each of some hundred prices that are not independent
        raise SystemExit("that is too far")


if __name__ == "__main__":
    main()
