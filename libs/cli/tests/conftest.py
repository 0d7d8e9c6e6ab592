"""A gateway in memory on a real socket: it takes events and serves counts, and refuses as it is told to."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .serving import routed, serving
from .stand_in_ops import FakeOps

Answer = Callable[[Request], Response]


@dataclass
class FakeGateway:
    """`answers` are given first, one per request, before the gateway's own; `seen` are the requests."""

    url: str = ""
    answers: deque[Answer] = field(default_factory=deque)
    seen: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    log: list[dict[str, Any]] = field(default_factory=list)
    apply_twice: set[str] = field(default_factory=set)
    refuse_item: Callable[[dict[str, Any]], str | None] = lambda _: None
    retry_after: str = ""
    in_flight: int = 0
    most_in_flight: int = 0

    def answer_with(self, *answers: Answer) -> None:
        self.answers.extend(answers)

    def applied(self) -> list[dict[str, Any]]:
        once = {event["eventId"]: event for event in reversed(self.log)}
        return list(reversed(once.values())) + [
            event for event in once.values() if event["eventId"] in self.apply_twice
        ]

    async def handle(self, request: Request) -> Response:
        self.seen.append((request.method, request.url.path + ("?" + request.url.query if request.url.query else "")))
        self.tokens.add(request.headers.get("Authorization", ""))
        body = await request.body()
        if self.answers:
            return self.answers.popleft()(request)
        match request.method, request.url.path.split("/")[1:]:
            case "POST", ["events"]:
                return self.accept(msgspec.json.decode(body))
            case "POST", ["events", "batch"]:
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                await asyncio.sleep(0.005)
                self.in_flight -= 1
                results = [self.item(msgspec.json.decode(line)) for line in body.splitlines()]
                rejected = any(result["status"] == "rejected" for result in results)
                headers = {"Retry-After": self.retry_after} if rejected and self.retry_after else {}
                return JSONResponse({"data": results}, status_code=207 if rejected else 202, headers=headers)
            case "GET", ["events", event_id]:
                return self.status(event_id)
            case "GET", ["patients", patient_id]:
                return self.patient(patient_id)
            case "GET", ["patients", patient_id, "history"]:
                return self.history(patient_id, request)
        return refusal(404, "not-found")

    def accept(self, event: dict[str, Any]) -> Response:
        item = self.item(event)
        if item["status"] != "accepted":
            return refusal(400, item["error"]["code"])
        return JSONResponse({"data": item}, status_code=202)

    def item(self, event: dict[str, Any]) -> dict[str, Any]:
        code = self.refuse_item(event)
        if code is not None:
            error = {"code": code, "message": "No.", "details": [{"path": "data", "rule": "is good"}]}
            return {"status": "rejected", "error": error}
        self.log.append(event)
        event_id = event["eventId"]
        return {
            "status": "accepted",
            "eventId": event_id,
            "partition": 0,
            "offset": len(self.log),
            "statusUrl": f"{self.url}/events/{event_id}",
        }

    def status(self, event_id: str) -> Response:
        found = [event for event in self.applied() if event["eventId"] == event_id]
        if not found:
            return refusal(404, "not-found")
        return JSONResponse({"data": {"eventId": event_id, "status": "processed", "type": found[0]["type"]}})

    def patient(self, patient_id: str) -> Response:
        counts = Counter(event["type"] for event in self.applied() if event["patientId"] == patient_id)
        if not counts:
            return refusal(404, "not-found")
        return JSONResponse({"data": {"patientId": patient_id, "counts": counts, "otherTypes": 0}})

    def history(self, patient_id: str, request: Request) -> Response:
        events = [event for event in self.applied() if event["patientId"] == patient_id]
        begin = int(request.query_params.get("cursor", "0"))
        end = begin + int(request.query_params["limit"])
        page = {"next": str(end) if end < len(events) else None}
        return JSONResponse({"data": events[begin:end], "page": page})


def refusal(status: int, code: str, **headers: str) -> Response:
    error = {"code": code, "message": "No.", "details": [], "requestId": "r-1"}
    return JSONResponse({"error": error}, status_code=status, headers=dict(headers))


def refuse(status: int, code: str, **headers: str) -> Answer:
    return lambda _: refusal(status, code, **{name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
async def gateway() -> AsyncIterator[FakeGateway]:
    fake = FakeGateway()
    async with serving(routed(fake.handle)) as url:
        fake.url = url
        yield fake


@pytest.fixture
async def ops() -> AsyncIterator[FakeOps]:
    fake = FakeOps()
    async with serving(routed(fake.handle)) as url:
        fake.url = url
        yield fake
