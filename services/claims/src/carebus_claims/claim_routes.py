"""Claims over HTTP: one at a time, in lists, many at once, as files and as a stream. Routes translate and call."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Query, Response, Security
from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse

from carebus_claims.change_feed import ChangeFeed, change_view
from carebus_claims.claim import Claim, Status, assign, move, pay, shown
from carebus_claims.claim_bulk import create_many, update_many
from carebus_claims.claim_documents import AuditEntry
from carebus_claims.claim_exports import as_csv, as_ndjson
from carebus_claims.claim_models import (
    AssignBody,
    AuditQuery,
    BulkCreateBody,
    BulkUpdateBody,
    ChangesQuery,
    ClaimAuditView,
    ClaimBody,
    ClaimBulkView,
    ClaimView,
    DashboardView,
    ExportQuery,
    ListQuery,
    PatchBody,
    PaymentBody,
    StatusBody,
)
from carebus_claims.claim_permissions import CLAIM_PERMISSIONS as PERMISSIONS
from carebus_claims.claim_permissions import Reach, claim_roles, scope_of
from carebus_claims.claim_queries import ClaimQuery, Place, place_of
from carebus_claims.claim_service import ClaimService, Request, changed, claim_query
from carebus_claims.claim_writing import BULK_HEADERS, WRITE_HEADERS, once, version_of
from carebus_claims.figures import dashboard
from carebus_common.auth import Caller, current_caller
from carebus_common.contracts.event import EventId
from carebus_common.errors import InvalidRequest
from carebus_common.http import Data, Page, request_id_of
from carebus_common.http.cursor import CursorCodec
from carebus_common.http.documentation import refusals

__all__ = ["claim_routes"]

ClaimId = Annotated[EventId, Path(alias="claimId")]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ETAG: Final[dict[str, Any]] = {
    "headers": {"ETag": {"description": "The claim's version.", "schema": {"type": "string"}}}
}


def _admits(route: str) -> Any:
    return Security(current_caller, scopes=claim_roles(route))


def claim_routes(service: ClaimService, cursors: CursorCodec, feed: ChangeFeed) -> APIRouter:
    """The routes of `claim_permissions.CLAIM_PERMISSIONS`; each admits the roles its row lists."""
    router = APIRouter()
    # In this order: `bulk`, `dashboard` and the others are paths of their own and not ids.
    _add_bulk(router, service)
    _add_overviews(router, service, feed)
    _add_reading(router, service, cursors)
    _add_writing(router, service)
    return router


def _add_bulk(router: APIRouter, service: ClaimService) -> None:
    @router.post(
        "/claims/bulk",
        summary="Create many claims",
        response_model=Data[ClaimBulkView],
        openapi_extra=BULK_HEADERS,
        responses=refusals(409, 422),
    )
    async def create_claims(
        http: HttpRequest, body: BulkCreateBody, caller: Annotated[Caller, _admits("POST /claims/bulk")]
    ) -> Response:
        """At most 1,000. Each has a result of its own; what can be created is, in one transaction."""

        async def run(request: Request) -> tuple[int, bytes]:
            return 200, await create_many(service, request, body.claims)

        return await once(service, http, caller, "POST /claims/bulk", run)

    @router.patch(
        "/claims/bulk",
        summary="Change many claims",
        response_model=Data[ClaimBulkView],
        openapi_extra=BULK_HEADERS,
        responses=refusals(409, 422),
    )
    async def update_claims(
        http: HttpRequest, body: BulkUpdateBody, caller: Annotated[Caller, _admits("PATCH /claims/bulk")]
    ) -> Response:
        """At most 1,000. Each has a result of its own; what can be changed is, in one transaction."""

        async def run(request: Request) -> tuple[int, bytes]:
            return 200, await update_many(service, request, body.updates)

        return await once(service, http, caller, "PATCH /claims/bulk", run)


def _add_overviews(router: APIRouter, service: ClaimService, feed: ChangeFeed) -> None:
    @router.get("/claims/dashboard", summary="Claims in figures")
    async def get_dashboard(
        http: HttpRequest, caller: Annotated[Caller, _admits("GET /claims/dashboard")]
    ) -> Data[DashboardView]:
        """Counts and sums by status, open claims by age and by processor; exact as of the last change."""
        route = "GET /claims/dashboard"
        head = await service.head(_request(route, http, caller))
        only = None if _reaches_all(route, caller) else caller.subject
        return Data(
            data=DashboardView.model_validate(dashboard(head.seq, head.figures, datetime.now(UTC).date(), only=only))
        )

    @router.get(
        "/claims/export",
        summary="Claims as a file",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {}, "text/csv": {}}, "description": "A line a claim."}},
    )
    async def export_claims(
        query: Annotated[ExportQuery, Query()], caller: Annotated[Caller, _admits("GET /claims/export")]
    ) -> Response:
        """All that match, streamed. Cells of the CSV that a spreadsheet would run begin with an apostrophe."""
        found = service.tenant(caller).export(claim_query(query, "GET /claims/export", caller))
        if query.format == "csv":
            kind, parts = "text/csv; charset=utf-8; header=present", as_csv(found)
        else:
            kind, parts = "application/x-ndjson", as_ndjson(found)
        named = {"Content-Disposition": f'attachment; filename="claims.{query.format}"'}
        return StreamingResponse(parts, headers=named, media_type=kind)

    @router.get(
        "/claims/changes",
        summary="Changes of claims as they happen",
        response_class=StreamingResponse,
        openapi_extra={
            "parameters": [
                {
                    "name": "Last-Event-ID",
                    "in": "header",
                    "required": False,
                    "description": "The number of the last change that was seen; what came after it follows.",
                    "schema": {"type": "string", "pattern": "^(0|[1-9][0-9]{0,17})$"},
                }
            ]
        },
        responses={
            200: {
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
                "description": "Server-sent events named `claim`, whose data are a ChangeItem.",
            }
        },
    )
    async def follow_changes(
        http: HttpRequest,
        _query: Annotated[ChangesQuery, Query()],
        caller: Annotated[Caller, _admits("GET /claims/changes")],
    ) -> Response:
        """Numbered by the organization's changes. Ends with the token, and when the service stops."""
        route = "GET /claims/changes"
        scope = scope_of(route, caller)
        claims = service.tenant(caller)
        head = (await claims.head()).seq
        after = _last_event_id(http, head)

        def sees(entry: AuditEntry) -> bool:
            if scope.field is None:
                return True
            return any(
                side is not None and side.get(scope.field) == scope.value for side in (entry.after, entry.before)
            )

        parts = feed.stream(claims, head if after is None else after, sees, caller.expires_at)
        return StreamingResponse(parts, media_type="text/event-stream")


def _add_reading(router: APIRouter, service: ClaimService, cursors: CursorCodec) -> None:
    @router.get("/claims", summary="Claims", response_model=Page[ClaimView])
    async def list_claims(
        http: HttpRequest, query: Annotated[ListQuery, Query()], caller: Annotated[Caller, _admits("GET /claims")]
    ) -> Response:
        """Pages do not shift: a claim that is added meanwhile is seen if its place is still ahead."""
        wanted = claim_query(query, "GET /claims", caller)
        bound = {"list": "claims", **query.model_dump(mode="json", exclude={"cursor", "limit"})}
        after = _place(cursors, query.cursor, caller, bound, wanted)
        request = _request("GET /claims", http, caller)
        claims = await service.page(request, wanted, limit=query.limit + 1, after=after)
        following: str | None = None
        if len(claims) > query.limit:
            place = place_of(claims[query.limit - 1], wanted)
            following = cursors.encode(_position(place), organization_id=caller.organization_id, query=bound)
        body = {"data": [shown(claim) for claim in claims[: query.limit]], "page": {"next": following}}
        return _answer(body)

    @router.get("/claims/{claimId:segment}", summary="A claim", response_model=Data[ClaimView], responses={200: _ETAG})
    async def get_claim(
        http: HttpRequest, claim_id: ClaimId, caller: Annotated[Caller, _admits("GET /claims/{claimId}")]
    ) -> Response:
        """With its version as ETag."""
        claim = await service.get(_request("GET /claims/{claimId}", http, caller), str(claim_id))
        return _answer({"data": shown(claim)}, ETag=f'"{claim.version}"')

    @router.get(
        "/claims/{claimId:segment}/audit", summary="What became of a claim", response_model=Page[ClaimAuditView]
    )
    async def get_audit(
        http: HttpRequest,
        claim_id: ClaimId,
        query: Annotated[AuditQuery, Query()],
        caller: Annotated[Caller, _admits("GET /claims/{claimId}/audit")],
    ) -> Response:
        """Every change, the oldest first: who, when, why, and each field before and after."""
        bound = {"list": "audit", "claimId": str(claim_id)}
        after = 0
        if query.cursor is not None:
            (after,) = cursors.decode(query.cursor, organization_id=caller.organization_id, query=bound)
        request = _request("GET /claims/{claimId}/audit", http, caller)
        entries = await service.audit(request, str(claim_id), limit=query.limit + 1, after_seq=after)
        following: str | None = None
        if len(entries) > query.limit:
            last = entries[query.limit - 1].seq
            following = cursors.encode([last], organization_id=caller.organization_id, query=bound)
        return _answer({"data": [change_view(e) for e in entries[: query.limit]], "page": {"next": following}})


def _add_writing(router: APIRouter, service: ClaimService) -> None:
    @router.post(
        "/claims",
        status_code=201,
        summary="Create a claim",
        response_model=Data[ClaimView],
        openapi_extra=BULK_HEADERS,
        responses=refusals(409, 422),
    )
    async def create_claim(
        http: HttpRequest, body: ClaimBody, caller: Annotated[Caller, _admits("POST /claims")]
    ) -> Response:
        """It begins as `submitted`."""
        return await once(service, http, caller, "POST /claims", lambda request: service.create(request, body))

    @router.patch(
        "/claims/{claimId:segment}",
        summary="Change a claim",
        response_model=Data[ClaimView],
        openapi_extra=WRITE_HEADERS,
        responses=refusals(409, 422),
    )
    async def patch_claim(
        http: HttpRequest,
        claim_id: ClaimId,
        body: PatchBody,
        caller: Annotated[Caller, _admits("PATCH /claims/{claimId}")],
    ) -> Response:
        """The fields that are named. The version that was read is needed; 409 if the claim has changed since."""
        version = version_of(http, body.version, required=True)

        async def run(request: Request) -> tuple[int, bytes]:
            return await service.change(
                request, str(claim_id), version, "updated", body.reason, lambda claim, at: changed(claim, body, at)
            )

        return await once(service, http, caller, "PATCH /claims/{claimId}", run)

    @router.post(
        "/claims/{claimId:segment}/status",
        summary="Move a claim to its next status",
        response_model=Data[ClaimView],
        openapi_extra=WRITE_HEADERS,
        responses=refusals(409, 422),
    )
    async def set_status(
        http: HttpRequest,
        claim_id: ClaimId,
        body: StatusBody,
        caller: Annotated[Caller, _admits("POST /claims/{claimId}/status")],
    ) -> Response:
        """submitted → under_review → pending → approved or denied; 422 for anything else."""
        version = version_of(http, body.version)

        def to(claim: Claim, at: datetime) -> Claim:
            return move(claim, Status(body.status), at, reason=body.reason)

        async def run(request: Request) -> tuple[int, bytes]:
            return await service.change(request, str(claim_id), version, "status-changed", body.reason, to)

        return await once(service, http, caller, "POST /claims/{claimId}/status", run)

    @router.post(
        "/claims/{claimId:segment}/assign",
        summary="Assign a claim",
        response_model=Data[ClaimView],
        openapi_extra=WRITE_HEADERS,
        responses=refusals(409, 422),
    )
    async def assign_claim(
        http: HttpRequest,
        claim_id: ClaimId,
        body: AssignBody,
        caller: Annotated[Caller, _admits("POST /claims/{claimId}/assign")],
    ) -> Response:
        """To a processor, to another one, or to nobody."""
        version = version_of(http, body.version)

        async def run(request: Request) -> tuple[int, bytes]:
            return await service.change(
                request,
                str(claim_id),
                version,
                "assigned",
                body.reason,
                lambda claim, at: assign(claim, body.processor_id, at),
            )

        return await once(service, http, caller, "POST /claims/{claimId}/assign", run)

    @router.post(
        "/claims/{claimId:segment}/payment",
        summary="Enter a claim's payment",
        response_model=Data[ClaimView],
        openapi_extra=WRITE_HEADERS,
        responses=refusals(409, 422),
    )
    async def pay_claim(
        http: HttpRequest,
        claim_id: ClaimId,
        body: PaymentBody,
        caller: Annotated[Caller, _admits("POST /claims/{claimId}/payment")],
    ) -> Response:
        """Of an approved claim, which is then paid."""
        version = version_of(http, body.version)

        def to(claim: Claim, at: datetime) -> Claim:
            return pay(claim, Decimal(body.amount), at)

        async def run(request: Request) -> tuple[int, bytes]:
            return await service.change(request, str(claim_id), version, "paid", body.reason, to)

        return await once(service, http, caller, "POST /claims/{claimId}/payment", run)


def _answer(body: Any, **headers: str) -> Response:
    """Encoded as it is: what `claim.shown` and the views give needs no second validation."""
    return Response(msgspec.json.encode(body), media_type="application/json", headers=headers)


def _request(route: str, http: HttpRequest, caller: Caller) -> Request:
    return Request(route, caller, request_id_of(http.scope))


def _reaches_all(route: str, caller: Caller) -> bool:
    return any(PERMISSIONS[route].get(role) is Reach.ALL for role in caller.roles)


def _last_event_id(http: HttpRequest, head: int) -> int | None:
    values = http.headers.getlist("last-event-id")
    if not values:
        return None
    value = values[0]
    if len(values) > 1 or not (value.isascii() and value.isdigit() and len(value) <= 18) or int(value) > head:
        raise InvalidRequest(
            "The request breaks a rule.",
            details=[{"path": "last-event-id", "rule": "the id of an event of this stream"}],
        )
    return int(value)


def _position(place: Place) -> list[Any]:
    value = place.value
    if isinstance(value, Decimal):
        return [str(value), place.claim_id]
    return [(value - _EPOCH) // timedelta(milliseconds=1), place.claim_id]


def _place(
    cursors: CursorCodec, cursor: str | None, caller: Caller, bound: dict[str, Any], query: ClaimQuery
) -> Place | None:
    """Raises NotFound, InvalidRequest as `CursorCodec.decode` does."""
    if cursor is None:
        return None
    value, claim_id = cursors.decode(cursor, organization_id=caller.organization_id, query=bound)
    if query.sort == "total":
        return Place(Decimal(value), claim_id)
    return Place(_EPOCH + timedelta(milliseconds=value), claim_id)
