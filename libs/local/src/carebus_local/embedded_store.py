"""The secantusdb wheel's server with two of its faults mended: `python -m carebus_local.embedded_store OPTION…`.

Version 0.7.0b3, each statement of a transaction, in `secantus.transactions.TransactionRegistry`:

- Looks for transactions to expire, and for that waits for every other transaction's running statement while it holds
  the registry's lock. One statement that waits inside WiredTiger for cache then stops all transactions, the ones that
  would free the cache too, for up to a minute. A transaction that runs a statement has not expired, so here it is
  passed over.
- Goes through all 10,000 records of retryable writes for those to forget, twice per write. Here it looks at the oldest
  only: they are kept in the order of their times.

`tests/test_embedded_store.py` fails when a new version of the wheel no longer has the functions that are replaced.
It is imported in a process of its own and by that test alone, since the wheel is GPL-2.0.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    from secantus import cli, transactions  # noqa: PLC0415

    mend(transactions.TransactionRegistry)
    result: int | None = cli.main()
    return result or 0


def mend(registry: type) -> None:
    """Replace the two functions of `TransactionRegistry`."""
    from secantus import transactions  # noqa: PLC0415

    in_progress, aborted = transactions.TxnState.IN_PROGRESS, transactions.TxnState.ABORTED
    lifetime, most = transactions._RETRYABLE_RECORD_LIFETIME_SECONDS, transactions._RETRYABLE_RECORD_MAX

    def _prune_locked(self):  # type: ignore[no-untyped-def]
        cutoff = self._time() - self._lifetime
        reaped = 0
        for txn in self._txns.values():
            if txn.state is not in_progress or txn.last_use >= cutoff or not txn.mutex.acquire(blocking=False):
                continue
            try:
                if txn.state is in_progress and txn.last_use < cutoff:
                    self._rollback_quietly(txn)
                    txn.state = aborted
                    reaped += 1
            finally:
                txn.mutex.release()
        return reaped

    def _prune_retryable_locked(self):  # type: ignore[no-untyped-def]
        cutoff = self._time() - lifetime
        records = self._retryable
        while records:
            oldest = next(iter(records))
            if records[oldest][1] >= cutoff and len(records) <= most:
                return
            del records[oldest]

    for replacement in (_prune_locked, _prune_retryable_locked):
        if not hasattr(registry, replacement.__name__):
            raise AttributeError(f"this version of secantusdb has no {replacement.__name__}: see {__name__}")
        setattr(registry, replacement.__name__, replacement)


if __name__ == "__main__":
    sys.exit(main())
