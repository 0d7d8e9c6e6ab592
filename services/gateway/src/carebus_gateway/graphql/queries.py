"""Query texts: read, checked and remembered by their sha256, so that a client may send the hash alone.

The protocol is that of automatic persisted queries: `extensions.persistedQuery {version: 1, sha256Hash}` without a
query asks for a known one and is told PERSISTED_QUERY_NOT_FOUND if it is not; the client then sends both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
from graphql import DocumentNode, GraphQLError, GraphQLSchema, OperationDefinitionNode, parse, validate
from graphql.language import OperationType

from carebus_common.errors import CarebusError, InvalidRequest, NotAllowed
from carebus_gateway.graphql.limits import Limits, check_shape

__all__ = ["PersistedQueryNotFound", "Queries", "Query", "QueryInvalid", "read_allow_list"]

_HASH_LENGTH: Final = 64


class PersistedQueryNotFound(CarebusError):
    """The code and the message are the protocol's: clients look for either."""

    status = 200
    code = "PERSISTED_QUERY_NOT_FOUND"

    def __init__(self) -> None:
        super().__init__("PersistedQueryNotFound")


class QueryInvalid(Exception):
    """The text is no query, or not one of this schema."""

    def __init__(self, errors: list[GraphQLError]) -> None:
        super().__init__(f"{len(errors)} errors")
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Query:
    """A text that was found to be valid, and what it says."""

    text: str
    document: DocumentNode

    def operation(self, name: str | None) -> OperationDefinitionNode:
        """The operation of that name, or the only one. Raises InvalidRequest, NotAllowed if it is no query."""
        found = [
            definition
            for definition in self.document.definitions
            if isinstance(definition, OperationDefinitionNode)
            and (name is None or (definition.name is not None and definition.name.value == name))
        ]
        if len(found) != 1:
            raise InvalidRequest(
                "It is not clear which operation is meant.",
                details=[{"path": "$.operationName", "rule": "the name of one operation of the query"}],
            )
        if found[0].operation is not OperationType.QUERY:
            raise NotAllowed("Only queries are offered here; changes go through REST.")
        return found[0]


class Queries:
    """The queries known: the newest `size`, or exactly those of `allowed` (texts by hash)."""

    def __init__(
        self, schema: GraphQLSchema, limits: Limits, *, size: int, allowed: Mapping[str, str] | None = None
    ) -> None:
        """Raises QueryInvalid, InvalidRequest for an allowed query that this schema does not answer."""
        self._schema = schema
        self._limits = limits
        self._size = size
        self._only_allowed = allowed is not None
        self._known: OrderedDict[str, Query] = OrderedDict(
            (digest, self._read(text)) for digest, text in (allowed or {}).items()
        )

    def find(self, text: str | None, persisted: Any) -> Query:
        """The query meant by a request's `query` and `extensions.persistedQuery` (None: absent).

        Raises PersistedQueryNotFound, InvalidRequest, NotAllowed (not one of those allowed), QueryInvalid.
        """
        given = _hash_of(persisted) if persisted is not None else None
        if text is None:
            if given is None:
                raise InvalidRequest("There is no query.", details=[{"path": "$.query", "rule": "a text"}])
            known = self._touched(given)
            if known is None:
                raise PersistedQueryNotFound
            return known
        digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        if given is not None and given != digest:
            raise InvalidRequest(
                "The hash is not that of the query.",
                details=[{"path": "$.extensions.persistedQuery.sha256Hash", "rule": "sha256 of the query in UTF-8"}],
            )
        known = self._touched(digest)
        if known is not None:
            return known
        if self._only_allowed:
            raise NotAllowed("Only queries that were registered are answered here.")
        query = self._known[digest] = self._read(text)
        if len(self._known) > self._size:
            self._known.popitem(last=False)
        return query

    def _touched(self, digest: str) -> Query | None:
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
        return known

    def _read(self, text: str) -> Query:
        try:
            document = parse(text, max_tokens=self._limits.tokens)
            check_shape(document, self._limits)
        except GraphQLError as error:
            raise QueryInvalid([error]) from None
        except RecursionError:
            raise InvalidRequest(
                "The query is nested too deeply.",
                details=[{"path": "$.query", "rule": f"depth at most {self._limits.depth}"}],
            ) from None
        query = Query(text, document)
        # Before validation, which would say of a mutation only that this schema has none.
        operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
        if len(operations) == 1:
            query.operation(None)
        errors = validate(self._schema, document, max_errors=5)
        if errors:
            raise QueryInvalid(errors)
        return query


def _hash_of(persisted: Any) -> str:
    if not isinstance(persisted, dict) or persisted.get("version") != 1:
        raise InvalidRequest(
            "The persisted query is not of a version known here.",
            details=[{"path": "$.extensions.persistedQuery.version", "rule": "1"}],
        )
    digest = persisted.get("sha256Hash")
    if not (isinstance(digest, str) and len(digest) == _HASH_LENGTH and set(digest) <= set("0123456789abcdef")):
        raise InvalidRequest(
            "The persisted query's hash is malformed.",
            details=[{"path": "$.extensions.persistedQuery.sha256Hash", "rule": "64 hexadecimal digits in lower case"}],
        )
    return digest


def read_allow_list(path: Path) -> dict[str, str]:
    """Query texts by hash from a JSON file that holds just that. Raises OSError, ValueError for another file."""
    try:
        texts = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON object of query texts by sha256") from error
    for digest, text in texts.items():
        if sha256(text.encode()).hexdigest() != digest:
            raise ValueError(f"{path}: {digest} is not the sha256 of its query")
    return texts
