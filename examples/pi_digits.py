"""Pairs of digits of pi, counted in parallel; the digits are computed on the engines too.

    enginery run examples/pi_digits.py -n 4          on a temporary cluster
    python examples/pi_digits.py --digits 100000     on the cluster that runs here, or else on a temporary one

The series of the Chudnovsky brothers is split into ranges of terms, one task each, and these are joined, pair
by pair, until one is left; meanwhile another task computes the root by which that is divided in the end. Then
slices of the digits are dealt out, and the pairs in each are counted. Decimals are used since they multiply far
faster than whole numbers of this length.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from contextlib import contextmanager
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, localcontext
from typing import TYPE_CHECKING

from rich.console import Console

import enginery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Range = tuple[Decimal, Decimal, Decimal]
"""What binary splitting knows of a range of terms: the products P and Q, and the sum T."""

DIGITS_A_TERM = 14.181647462725477
BEGINNING = "14159265358979323846264338327950288419716939937510"
MOST_DIGITS = 750_000
"""A task and its arguments are one message, of at most 4 MiB; the last two ranges take five bytes a digit."""
_GUARD = 10  # digits that are computed and not used: the last few are not exact


def split(begin: int, end: int) -> Range:
    """Return the terms from `begin` up to `end`, summed exactly."""
    if end - begin == 1:
        if begin == 0:
            return Decimal(1), Decimal(1), Decimal(13_591_409)
        p = (6 * begin - 5) * (2 * begin - 1) * (6 * begin - 1)
        q = begin**3 * 10_939_058_860_032_000
        t = p * (13_591_409 + 545_140_134 * begin)
        return Decimal(p), Decimal(q), Decimal(-t if begin % 2 else t)
    middle = (begin + end) // 2
    return join(split(begin, middle), split(middle, end))


def join(left: Range, right: Range) -> Range:
    """Return two ranges that follow each other as one."""
    with localcontext(Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)):  # exact
        return left[0] * right[0], left[1] * right[1], right[1] * left[2] + left[0] * right[2]


def divide(q: Decimal, t: Decimal, root: Decimal, digits: int) -> str:
    """Return the digits of pi behind the point, from what is known of all terms and 1 / sqrt(10005)."""
    with localcontext(Context(prec=digits + _GUARD, Emax=MAX_EMAX, Emin=MIN_EMIN)):
        pi = 426_880 * 10_005 * root * q / t
        return str(pi)[2 : 2 + digits]


def inverse_root(number: int, digits: int) -> Decimal:
    """Return 1 / sqrt(number) to so many digits, by Newton's method: each round doubles them."""
    root, known = Decimal(number**-0.5), 15
    while known < digits:
        known = min(2 * known, digits)
        with localcontext(Context(prec=known + _GUARD, Emax=MAX_EMAX, Emin=MIN_EMIN)):
            root += root * (1 - number * root * root) / 2
    return root


def count_pairs(digits: str) -> Counter[str]:
    """Return how often each two digits stand side by side."""
    return Counter(map("".join, itertools.pairwise(digits)))


def bounds(total: int, parts: int) -> list[tuple[int, int]]:
    """Return `total` things as ranges of about the same size."""
    edges = [total * number // parts for number in range(parts + 1)]
    return list(itertools.pairwise(edges))


def sum_terms(starmap: Callable[..., Iterable[Range]], digits: int, parts: int) -> Range:
    """Return the sum of the series, its ranges computed and joined by `starmap`."""
    terms = int(digits / DIGITS_A_TERM) + 2
    ranges = list(starmap(split, bounds(terms, min(parts, terms))))
    while len(ranges) > 1:
        odd = ranges[-1:] if len(ranges) % 2 else []
        ranges = [*starmap(join, zip(ranges[::2], ranges[1::2], strict=False)), *odd]
    return ranges[0]


def slices(digits: str, parts: int) -> list[str]:
    """Return the digits in pieces, each with the first digit of the next, so that no pair is lost."""
    return [digits[begin : end + 1] for begin, end in bounds(len(digits), parts)]


def on_engines(client: enginery.Client, digits: int) -> tuple[str, Counter[str]]:
    """Compute and count on whichever engines have room."""
    parts = 2 * len(client)

    def starmap(function: Callable[..., Range], pairs: Iterable[tuple[object, object]]) -> Iterable[Range]:
        return client.map(function, *zip(*pairs, strict=True), chunksize=1)

    root = client.submit(inverse_root, 10_005, digits + _GUARD)
    _, q, t = sum_terms(starmap, digits, parts)
    found = client.submit(divide, q, t, root.result(), digits).result()
    pairs: Counter[str] = Counter()
    for part in client.map(count_pairs, slices(found, parts), chunksize=1, ordered=False):
        pairs.update(part)
    return found, pairs


def here(digits: int) -> tuple[str, Counter[str]]:
    """Do the same serially in this process."""
    root = inverse_root(10_005, digits + _GUARD)
    _, q, t = sum_terms(itertools.starmap, digits, 1)
    found = divide(q, t, root, digits)
    return found, count_pairs(found)


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


def main() -> None:
    """Count twice, on engines and here, and compare."""
    parser = argparse.ArgumentParser(description="Count the pairs of digits of pi on engines.")
    parser.add_argument("--digits", type=int, default=500_000, help="how many digits (default: 500,000)")
    digits = parser.parse_args().digits
    if digits < 2:
        parser.error("--digits: at least 2, which are one pair")
    if digits > MOST_DIGITS:
        parser.error(
            f"--digits: at most {MOST_DIGITS:,}; the largest ranges travel whole, as arguments of tasks"
        )
    console = Console()
    with a_client() as client:
        engines = len(client)
        start = time.perf_counter()
        found, pairs = on_engines(client, digits)
        parallel = time.perf_counter() - start
    start = time.perf_counter()
    check = here(digits)
    serial = time.perf_counter() - start
    console.print(f"pi = 3.{found[:50]}… {digits:,} digits", highlight=False)
    common, rare = pairs.most_common()[:3], pairs.most_common()[-3:]
    console.print("most often: " + ", ".join(f"{pair} {count:,} times" for pair, count in common))
    console.print("least often: " + ", ".join(f"{pair} {count:,} times" for pair, count in rare))
    console.print(
        f"{engines} engines: {parallel:.1f} s   serially: {serial:.1f} s   ({serial / parallel:.1f} x)"
    )
    if (found, pairs) != check or not BEGINNING.startswith(found[: len(BEGINNING)]):
        raise SystemExit("the engines found something else than the serial run")
    console.print("The engines found exactly what the serial run found.")


if __name__ == "__main__":
    main()
