"""Claims as an upstream that is told what to answer, and how a test asks for them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

NOW = "2026-11-25T08:00:00.000Z"


def claim_id(number: int) -> str:
    return f"0190b5c2-0000-7000-8000-{number:012d}"


def claim(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "claimId": claim_id(number),
        "version": 1,
        "status": "pending",
        "patientId": f"p-{number}",
        "currency": "CAD",
        "lines": [{"code": "15804", "units": 1, "amount": "136.80"}],
        "total": "136.80",
        "paid": "0.00",
        "createdAt": NOW,
        "updatedAt": NOW,
        **changed,
    }


ENTRY = {
    "seq": 4,
    "at": NOW,
    "actor": {"id": "u-1", "role": "admin"},
    "action": "updated",
    "version": 2,
    "reason": None,
    "requestId": "r-1",
    "cause": {"kind": "request", "id": "r-1"},
    "changes": [{"path": "total", "before": "136.80", "after": "9999999.99"}],
}
EVENT = {
    "eventId": claim_id(900),
    "type": "admission",
    "ts": NOW,
    "receivedAt": NOW,
    "processedAt": NOW,
    "late": False,
    "message": "m",
    "flags": [],
    "data": {"ward": "3B"},
    "stay": None,
}
SUMMARY: dict[str, Any] = {
    "stay": None,
    "flags": [],
    "flagTotal": 0,
    "counts": {"admission": 1},
    "eventTotal": 1,
    "lateTotal": 0,
    "oldestTs": NOW,
    "newestTs": NOW,
}


@dataclass
class Claims:
    """An upstream with these claims, a page at a time; `without`: how it answers a read of several by id."""

    claims: list[dict[str, Any]] = field(default_factory=lambda: [claim(number) for number in range(50)])
    without: int | None = None
    busy: int = 0
    busiest: int = 0

    async def __call__(self, request: Any, writer: asyncio.StreamWriter) -> None:
        self.busy += 1
        self.busiest = max(self.busy, self.busiest)
        await asyncio.sleep(0.005)
        url = urlsplit(request.target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        status, body = self.answer([unquote(part) for part in url.path.split("/")[1:]], query)
        payload = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        self.busy -= 1
        writer.write(head.encode() + payload)

    def answer(self, path: list[str], query: Mapping[str, str]) -> tuple[int, Any]:
        known = {one["claimId"]: one for one in self.claims}
        match path:
            case ["claims"] if "claimId" in query:
                if self.without is not None:
                    return self.without, refusal("invalid-request")
                return 200, {"data": [known[one] for one in query["claimId"].split(",") if one in known]}
            case ["claims"]:
                found = [c for c in self.claims if query.get("patientId") in (None, c["patientId"])]
                return self.page(found, query)
            case ["claims", one]:
                return (200, {"data": known[one]}) if one in known else (404, refusal("not-found"))
            case ["claims", one, "audit"]:
                return self.page([ENTRY], query) if one in known else (404, refusal("not-found"))
            case ["patients"]:
                if self.without is not None:
                    return self.without, refusal("invalid-request")
                ids = [unquote(one) for one in query["patientId"].split(",")]
                return 200, {"data": [{**SUMMARY, "patientId": one} for one in ids if one != "nobody"]}
            case ["patients", "nobody", *_]:
                return 404, refusal("not-found")
            case ["patients", _]:
                return 200, {"data": SUMMARY}
            case ["patients", _, "history"]:
                return self.page([EVENT], query)
        return 404, refusal("not-found")

    def page(self, items: list[Any], query: Mapping[str, str]) -> tuple[int, Any]:
        start, limit = int(query.get("cursor", "0")), int(query["limit"])
        end = str(start + limit) if start + limit < len(items) else None
        return 200, {"data": items[start : start + limit], "page": {"next": end}}


def refusal(code: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": "No.", "details": [{"path": "a", "rule": "b"}], "requestId": "r"}}


async def ask(front: Any, query: str | None = None, variables: Any = None, **more: Any) -> httpx.Response:
    body = {"query": query, "variables": variables, **more}
    answer: httpx.Response = await front.http.post(
        "/graphql",
        content=json.dumps({name: value for name, value in body.items() if value is not None}),
        headers={**front.token(), "Content-Type": "application/json"},
    )
    return answer


async def data(front: Any, query: str, variables: Any = None) -> Any:
    answer = await ask(front, query, variables)
    assert answer.status_code == 200, answer.text
    assert "errors" not in answer.json(), answer.text
    return answer.json()["data"]


async def code(front: Any, query: str | None, variables: Any = None, **more: Any) -> tuple[int, str]:
    answer = await ask(front, query, variables, **more)
    (error,) = answer.json()["errors"]
    return answer.status_code, error["extensions"]["code"]
