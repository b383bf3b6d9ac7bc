"""Records of what an engine executed: bounded, kept as the bytes in which they are returned."""

from __future__ import annotations


class Records:
    """The last commands by number. Finished records outlive the kernel that ran them."""

    def __init__(self, max_count: int = 1_000, max_bytes: int = 64 << 20) -> None:
        """Keep at most so many records and so many bytes of them, the newest."""
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._records: dict[int, bytes] = {}
        self._bytes = 0
        self._last = 0

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._records)

    @property
    def size(self) -> int:
        """Bytes of the records that are kept."""
        return self._bytes

    def take_number(self) -> int:
        """Return the number of the next command, counted from 1."""
        self._last += 1
        return self._last

    def add(self, number: int, record: bytes) -> None:
        """Keep the record of command `number`, and release old ones to make room."""
        self._records[number] = record
        self._bytes += len(record)
        while len(self._records) > self._max_count or (
            self._bytes > self._max_bytes and len(self._records) > 1
        ):
            self._bytes -= len(self._records.pop(next(iter(self._records))))

    def get(self, number: int | None = None) -> bytes:
        """Return a record, by default the latest; IndexError says why there is none."""
        if number is None:
            if not self._records:
                raise IndexError("nothing was executed yet")
            return self._records[next(reversed(self._records))]
        if number in self._records:
            return self._records[number]
        if not self._last:
            raise IndexError(f"no command {number}: nothing was executed yet")
        if not 1 <= number <= self._last:
            raise IndexError(f"no command {number}: those executed are 1 to {self._last}")
        if self._records and number > next(reversed(self._records)):
            raise IndexError(f"command {number} still runs")
        raise IndexError(
            f"the record of command {number} was released: an engine keeps the last {self._max_count:,} "
            f"commands, and {self._max_bytes >> 20} MiB of them"
        )

    def clear(self) -> None:
        """Forget everything and count from 1 again."""
        self._records.clear()
        self._bytes = 0
        self._last = 0
