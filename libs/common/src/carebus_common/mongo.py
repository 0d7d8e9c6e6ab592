"""The MongoDB client as every service opens it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

import pymongo
from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConnectionFailure, ExecutionTimeout, OperationFailure, PyMongoError

from carebus_common.errors import Unavailable
from carebus_common.settings import MongoSettings

__all__ = ["Client", "Database", "connect", "in_time"]

Client = AsyncMongoClient[dict[str, Any]]
Database = AsyncDatabase[dict[str, Any]]

_RETRY_AFTER: Final = timedelta(seconds=2)
# mongod's codes for "not now": shutting down, stepping down, no primary, a transaction that lost against another.
_AWAY_CODES: Final = frozenset({91, 112, 189, 251, 10107, 11600, 11602, 13435, 13436})


def connect(settings: MongoSettings, *, app_name: str) -> Client:
    """A client that reads and writes with concern `majority`, whatever the URL says; it connects when used.

    Datetimes come back aware, in UTC. An operation raises `ServerSelectionTimeoutError` when no server was
    found within `mongo_server_selection_timeout`.
    """
    return AsyncMongoClient(
        settings.mongo_url,
        appname=app_name,
        w="majority",
        journal=True,
        readConcernLevel="majority",
        retryWrites=True,
        tz_aware=True,
        uuidRepresentation="standard",
        serverSelectionTimeoutMS=int(settings.mongo_server_selection_timeout.total_seconds() * 1000),
        connectTimeoutMS=3000,
        # A server that is there but does not answer counts as away after this long.
        socketTimeoutMS=20_000,
    )


@contextmanager
def in_time(limit: timedelta) -> Iterator[None]:
    """Bound what runs inside, server selection included, and say in one way, Unavailable, that the store is away."""
    try:
        with pymongo.timeout(limit.total_seconds()):
            yield
    except (ConnectionFailure, ExecutionTimeout) as error:
        raise Unavailable("The store is away.", retry_after=_RETRY_AFTER) from error
    except OperationFailure as error:
        if error.code not in _AWAY_CODES and not error.timeout:
            raise
        raise Unavailable("The store is away.", retry_after=_RETRY_AFTER) from error
    except PyMongoError as error:
        if not error.timeout:
            raise
        raise Unavailable("The store is away.", retry_after=_RETRY_AFTER) from error
