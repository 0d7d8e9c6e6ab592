"""The MongoDB client as every service opens it."""

from __future__ import annotations

from typing import Any

from pymongo import AsyncMongoClient
from pymongo.asynchronous.database import AsyncDatabase

from carebus_common.settings import MongoSettings

__all__ = ["Client", "Database", "connect"]

Client = AsyncMongoClient[dict[str, Any]]
Database = AsyncDatabase[dict[str, Any]]


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
