"""`POST /graphql`: one operation a request, bounded before it is looked into, answered as GraphQL answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import msgspec
import strawberry
from graphql import DocumentNode, GraphQLError, GraphQLSchema
from strawberry.extensions import SchemaExtension
from strawberry.schema.config import StrawberryConfig
from strawberry.types import ExecutionContext

from carebus_common.errors import CarebusError, GatewayTimeout, InvalidRequest
from carebus_common.strict_json import parse_object
from carebus_gateway.graphql.errors import Wording, shown
from carebus_gateway.graphql.limits import Limits, check_cost
from carebus_gateway.graphql.queries import PersistedQueryNotFound, Queries, Query, QueryInvalid, read_allow_list
from carebus_gateway.graphql.reading import ForCaller, Reader
from carebus_gateway.graphql.scalars import SCALARS
from carebus_gateway.graphql.types import Query as QueryType
from carebus_gateway.proxy import Upstream
from carebus_gateway.settings import Settings

__all__ = ["SCHEMA", "GraphQL"]

# A body has `variables`, they have inputs, and those lists: no more levels than that have a use.
_MAX_JSON_DEPTH: Final = 8

_document: ContextVar[DocumentNode] = ContextVar("_document")


class _ReadAlready(SchemaExtension):
    """Hands over the document that `Queries` has parsed and validated: once for each text and not for each request."""

    def on_parse(self) -> Iterator[None]:
        self.execution_context.graphql_document = _document.get()
        yield

    def on_validate(self) -> Iterator[None]:
        self.execution_context.pre_execution_errors = []
        yield


class _Schema(strawberry.Schema):
    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """The library would log them with what they quote; `shown` logs what is worth it."""


SCHEMA: Final = _Schema(query=QueryType, config=StrawberryConfig(scalar_map=SCALARS), extensions=[_ReadAlready])


class GraphQL:
    """Answers the bodies of requests; the caller's token has been verified before."""

    def __init__(self, claims: Upstream, settings: Settings) -> None:
        """Raises OSError, ValueError for an allow-list that cannot be read or does not fit the schema."""
        self._claims = claims
        self._settings = settings
        self._limits = Limits(
            depth=settings.graphql_max_depth, cost=settings.graphql_max_cost, aliases=settings.graphql_max_aliases
        )
        self._wording = Wording(SCHEMA.as_str())
        # The library has no public name for the schema that its own validation takes.
        self._queries = _queries(SCHEMA._schema, self._limits, settings)

    async def answer(self, body: bytes, caller: ForCaller) -> tuple[int, bytes]:
        """Status and body. An operation that was begun answers 200, with what failed in `errors`."""
        try:
            request = _request_of(body)
            query = self._queries.find(request.query, request.persisted)
            operation = query.operation(request.operation_name)
            check_cost(query.document, operation, request.variables, self._limits)
        except QueryInvalid as invalid:
            return self._refusal(400, invalid.errors, caller)
        except PersistedQueryNotFound as error:
            return self._refusal(200, [error], caller)
        except CarebusError as error:
            return self._refusal(error.status, [error], caller)
        return await self._execute(query, request, caller)

    async def _execute(self, query: Query, request: _Request, caller: ForCaller) -> tuple[int, bytes]:
        patience = self._settings.graphql_timeout.total_seconds()
        reader = Reader(
            self._claims, caller, at_once=self._settings.graphql_concurrency, limit=self._settings.claims_timeout
        )
        try:
            async with asyncio.timeout(patience):
                with _as_document(query.document):
                    result = await SCHEMA.execute(
                        query.text,
                        variable_values=request.variables,
                        context_value=reader,
                        operation_name=request.operation_name,
                    )
        except TimeoutError:
            late = GatewayTimeout(f"The query was not answered within {patience:g} seconds.")
            return self._refusal(late.status, [late], caller)
        finally:
            await reader.close()
        if result.data is None and result.errors and not any(error.path for error in result.errors):
            return self._refusal(400, result.errors, caller)
        answered: dict[str, Any] = {"data": result.data}
        if result.errors:
            answered["errors"] = shown(result.errors, self._wording, caller.request_id)
        return 200, msgspec.json.encode(answered)

    def _refusal(
        self, status: int, errors: Sequence[GraphQLError | CarebusError], caller: ForCaller
    ) -> tuple[int, bytes]:
        return status, msgspec.json.encode({"errors": shown(errors, self._wording, caller.request_id)})


class _Request(msgspec.Struct):
    query: str | None
    persisted: Any
    variables: dict[str, Any]
    operation_name: str | None


def _request_of(body: bytes) -> _Request:
    """Raises InvalidRequest for what is no request of the form that GraphQL over HTTP has."""
    given = parse_object(body, max_depth=_MAX_JSON_DEPTH)
    extensions = _member(given, "extensions", dict)
    return _Request(
        query=_member(given, "query", str),
        persisted=None if extensions is None else extensions.get("persistedQuery"),
        variables=_member(given, "variables", dict) or {},
        operation_name=_member(given, "operationName", str),
    )


def _member(given: Mapping[str, Any], name: str, kind: type) -> Any:
    value = given.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise InvalidRequest(
        "The body is no GraphQL request.",
        details=[{"path": f"$.{name}", "rule": "an object" if kind is dict else "a text"}],
    )


@contextmanager
def _as_document(document: DocumentNode) -> Iterator[None]:
    token = _document.set(document)
    try:
        yield
    finally:
        _document.reset(token)


def _queries(schema: GraphQLSchema, limits: Limits, settings: Settings) -> Queries:
    allowed = read_allow_list(settings.graphql_allow_list) if settings.graphql_allow_list else None
    try:
        return Queries(schema, limits, size=settings.graphql_queries, allowed=allowed)
    except (QueryInvalid, CarebusError) as error:
        raise ValueError(f"{settings.graphql_allow_list}: a query does not fit the schema or its limits") from error
