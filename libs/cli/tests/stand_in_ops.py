"""The operations API of both services in memory, strict as the real one; owners carry out requests when asked for them.

What it takes and answers is what `carebus_common.ops.models` has.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

Answer = Callable[[Request], Response]
Letter = dict[str, Any]

PATIENT = "patient-who-is-secret"
SECRET = "a-value-that-is-secret"
HASH = "0123456789abcdef"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_FILTERS = {"fingerprint", "type", "organizationId", "patient", "since", "until"}


@dataclass(frozen=True)
class Who:
    subject: str = "ops-1"
    organization: str = "carebus"
    roles: frozenset[str] = frozenset({"operator"})


def refusal(status: int, code: str, **headers: str) -> Response:
    error = {"code": code, "message": "No.", "details": [], "requestId": "r-1"}
    return JSONResponse({"error": error}, status_code=status, headers=dict(headers))


class Refusal(Exception):
    def __init__(self, status: int, code: str, path: str = "", rule: str = "") -> None:
        self.answer = refusal(status, code)
        if path:
            details = [{"path": path, "rule": rule}]
            error = {"code": code, "message": "No.", "details": details, "requestId": "r-1"}
            self.answer = JSONResponse({"error": error}, status_code=status)


@dataclass
class FakeOps:
    """One service's dead letters. `answers` are given first, one per request, before its own."""

    url: str = ""
    callers: dict[str, Who] = field(
        default_factory=lambda: {
            "t0ken": Who(),
            "second": Who("ops-2"),
            "phi": Who(roles=frozenset({"operator", "operator-phi"})),
            "hospital": Who(organization="north-hospital"),
            "nobody": Who(roles=frozenset({"admin"})),
        }
    )
    letters: dict[str, Letter] = field(default_factory=dict)
    answers: deque[Answer] = field(default_factory=deque)
    away: set[str] = field(default_factory=set)
    seen: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pending: list[tuple[str, str, str, str, str | None]] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    owner_speed: int = 10**9
    outcome: Callable[[Letter], str] = lambda _: "processed"
    revealed: list[tuple[str, str]] = field(default_factory=list)
    purges: list[dict[str, Any]] = field(default_factory=list)
    paused: dict[str, Any] | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    redrive_cap: int = 5
    gate: Callable[[str], asyncio.Event | None] = lambda _: None

    def add(self, count: int, **changes: Any) -> list[Letter]:
        """So many open dead letters, a second apart and the last one a minute old."""
        latest = datetime.now(UTC) - timedelta(minutes=1)
        return [self.put(latest - timedelta(seconds=count - number), **changes) for number in range(count)]

    def put(self, at: datetime, **changes: Any) -> Letter:
        number = len(self.letters)
        created = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        letter: Letter = {
            "id": f"medical.events.v1-3-{number}",
            "status": "open",
            "reason": "permanent",
            "blocking": True,
            "organizationId": "north-hospital",
            "eventId": f"00000000-0000-4000-8000-{number:012d}",
            "patient": HASH,
            "type": "observation",
            "source": {"topic": "medical.events.v1", "partition": 3, "offset": number},
            "failure": {
                "class": "KeyError",
                "message": "a field is missing",
                "fingerprint": "f-1",
                "where": "carebus_processor.stays:41",
                "attempts": 1,
                "firstFailedAt": created,
                "lastFailedAt": created,
            },
            "redrives": 0,
            "createdAt": created,
            "outcome": None,
            "previous": None,
            "causes": [{"class": "LookupError", "where": "carebus_processor.stays:12"}],
            "edits": [],
            "redrive": None,
            "discard": None,
            "value": {
                "eventId": f"00000000-0000-4000-8000-{number:012d}",
                "organizationId": "north-hospital",
                "patientId": PATIENT,
                "type": "observation",
                "ts": "2026-03-01T11:59:00Z",
                "receivedAt": "2026-03-01T12:00:00Z",
                "data": {"note": SECRET, "rate": 131},
            },
            "edited": None,
            **changes,
        }
        self.letters[letter["id"]] = letter
        return letter

    # --- requests -----------------------------------------------------------------------------------------------

    async def handle(self, request: Request) -> Response:
        path = request.url.path
        self.seen.append((request.method, path + ("?" + request.url.query if request.url.query else "")))
        body = await request.body()
        if (gate := self.gate(path)) is not None:
            await gate.wait()
            if await request.is_disconnected():
                return refusal(499, "gone")
        if self.answers:
            return self.answers.popleft()(request)
        try:
            return self.answer(request, body)
        except Refusal as refused:
            return refused.answer

    def answer(self, request: Request, body: bytes) -> Response:
        who = self.callers.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if who is None:
            raise Refusal(401, "unauthenticated")
        if not who.roles & {"operator", "operator-phi"}:
            raise Refusal(403, "forbidden")
        _, ops, service, *rest = request.url.path.split("/")
        if ops != "ops" or service not in {"processor", "claims"}:
            raise Refusal(404, "not-found")
        if service in self.away:
            raise Refusal(503, "unavailable")
        given = msgspec.json.decode(body) if body else {}
        if request.method == "POST":
            self.bodies.append(("/".join(rest), given))
        return self.route(who, request, service, rest, given)

    def route(self, who: Who, request: Request, service: str, rest: list[str], body: dict[str, Any]) -> Response:
        query = dict(request.query_params)
        match request.method, rest:
            case "GET", ["consumer"]:
                return data(self.consumer(who, service))
            case "POST", ["consumer", "resume"]:
                reason_of(body, {"reason"})
                self.paused = None
                return data(self.consumer(who, service))
            case "GET", ["dead-letters", "summary"]:
                only(query, {"organizationId", "since", "until"})
                return data(self.summary(self.visible(who, query)))
            case "GET", ["dead-letters"]:
                return self.page(who, query)
            case "GET", ["dead-letters", letter_id]:
                return data(view(self.one(who, letter_id)))
            case "GET", ["requests"]:
                self.carry_out()
                return data({"requests": len(self.pending), "deadLetters": len(self.pending)})
            case "GET", ["runs", run]:
                self.carry_out()
                only(query, {"outcomes"})
                return data(self.run(who, run, outcomes=query.get("outcomes", "true") == "true"))
            case "POST", ["dead-letters", ("redrive" | "discard") as action]:
                return data(self.choose(who, action, body))
            case "POST", ["dead-letters", letter_id, "reveal"]:
                return data(self.reveal(who, letter_id, reason_of(body, {"reason"})))
            case "POST", ["dead-letters", letter_id, "edit"]:
                return data(self.edit(who, letter_id, body))
            case _, ["purges", *more]:
                return data(self.purge(who, more, request.method, body))
            case "GET", ["topics", topic, "tail"]:
                return self.tail(who, topic, query)
        raise Refusal(404, "not-found")

    def one(self, who: Who, letter_id: str) -> Letter:
        letter = self.letters.get(letter_id)
        if letter is None or who.organization not in ("carebus", letter["organizationId"]):
            raise Refusal(404, "not-found")
        return letter

    def visible(self, who: Who, wanted: dict[str, Any]) -> list[Letter]:
        patient = wanted.get("patient")
        raw = patient is not None and len(patient) != 16
        if raw and "operator-phi" not in who.roles:
            raise Refusal(403, "forbidden")
        if raw and "organizationId" not in wanted:
            raise Refusal(400, "invalid-request", "patient", "with organizationId")

        def matches(letter: Letter) -> bool:
            return (
                who.organization in ("carebus", letter["organizationId"])
                and wanted.get("fingerprint", letter["failure"]["fingerprint"]) == letter["failure"]["fingerprint"]
                and all(wanted.get(name, letter[name]) == letter[name] for name in ("type", "organizationId"))
                and (patient is None or patient == (letter["value"]["patientId"] if raw else letter["patient"]))
                and wanted.get("since", "") <= letter["createdAt"] < wanted.get("until", "9")
            )

        return sorted(filter(matches, self.letters.values()), key=lambda one: (one["createdAt"], one["id"]))

    def summary(self, letters: list[Letter]) -> list[dict[str, Any]]:
        groups: dict[str, list[Letter]] = {}
        for letter in letters:
            groups.setdefault(letter["failure"]["fingerprint"], []).append(letter)
        return [
            {
                "fingerprint": fingerprint,
                "errorClass": group[-1]["failure"]["class"],
                "message": group[-1]["failure"]["message"],
                "where": group[-1]["failure"]["where"],
                "reason": group[-1]["reason"],
                **{status: sum(one["status"] == status for one in group) for status in STATUSES},
                "patients": len({one["patient"] for one in group if one["status"] == "open"}),
                "first": group[0]["createdAt"],
                "last": group[-1]["createdAt"],
                "example": group[-1]["id"],
            }
            for fingerprint, group in groups.items()
        ]

    def page(self, who: Who, query: dict[str, str]) -> Response:
        only(query, _FILTERS | {"status", "limit", "cursor"})
        limit, status = int(query.get("limit", "50")), query.get("status", "open")
        if not 1 <= limit <= 200 or status not in {*STATUSES, "all"}:
            raise Refusal(400, "invalid-request")
        found = [one for one in self.visible(who, query) if status in ("all", one["status"])][::-1]
        bound = msgspec.json.encode({name: value for name, value in query.items() if name not in {"limit", "cursor"}})
        after = cursor_of(query.get("cursor"), bound)
        begin = next((place for place, one in enumerate(found) if key(one) < after), len(found)) if after else 0
        page = found[begin : begin + limit]
        following = [*key(page[-1]), bound.decode()] if begin + limit < len(found) else None
        return JSONResponse(
            {
                "data": [{name: one[name] for name in ITEM} for one in page],
                "page": {"next": following and msgspec.json.encode(following).hex()},
            }
        )

    def choose(self, who: Who, action: str, body: dict[str, Any]) -> dict[str, Any]:
        reason = reason_of(body, {"ids", "filter", "reason", "dryRun", "cursor", "limit", "run"})
        dry, limit, run = body.get("dryRun", True), body.get("limit", 1000), check_run(body.get("run"))
        if not 1 <= limit <= 20_000 or ("ids" in body) == ("filter" in body):
            raise Refusal(400, "invalid-request")
        following, matching, skipped = None, None, []
        if "ids" in body:
            if not 1 <= len(body["ids"]) <= 1000 or "cursor" in body:
                raise Refusal(400, "invalid-request", "$.ids", "1 to 1000")
            there = [self.letters[each] for each in body["ids"] if each in self.letters]
            page = [one for one in there if who.organization in ("carebus", one["organizationId"])]
            known = {one["id"] for one in page}
            skipped = [{"id": each, "why": "not-found"} for each in body["ids"] if each not in known]
        else:
            only(body["filter"], _FILTERS)
            if not body["filter"]:
                raise Refusal(400, "invalid-request", "$.filter", "at least one field")
            found = [one for one in self.visible(who, body["filter"]) if one["status"] == "open"]
            matching = sum(self.why_not(one, action) is None for one in found)
            bound = msgspec.json.encode(body["filter"])
            after = cursor_of(body.get("cursor"), bound)
            begin = next((place for place, one in enumerate(found) if key(one) > after), len(found)) if after else 0
            page = found[begin : begin + limit]
            if len(page) == limit:
                following = msgspec.json.encode([*key(page[-1]), bound.decode()]).hex()
        reasons = {one["id"]: self.why_not(one, action) for one in page}
        skipped += [{"id": each, "why": why} for each, why in reasons.items() if why]
        taken = [one for one in page if not reasons[one["id"]]]
        if not dry:
            self.pending += [(one["id"], action, who.subject, reason, run) for one in taken]
        count = len(taken) if matching is None else matching
        return {
            "dryRun": dry,
            "matching": count if dry and count < 10_000 else None,
            "matchingAtLeast": 10_000 if dry and count >= 10_000 else None,
            "requested": len(taken),
            "patients": len({one["patient"] for one in taken}),
            "skipped": skipped[:1000],
            "moreSkipped": max(0, len(skipped) - 1000),
            "next": following,
        }

    def why_not(self, letter: Letter, action: str) -> str | None:
        if letter["status"] != "open":
            return "not-open"
        if action == "redrive" and not letter["blocking"]:
            return "not-redrivable"
        return "redrive-cap" if action == "redrive" and letter["redrives"] >= self.redrive_cap else None

    def carry_out(self) -> None:
        """What the owners of the partitions do: each request once, whatever is asked how often."""
        now, self.pending = self.pending[: self.owner_speed], self.pending[self.owner_speed :]
        for letter_id, action, subject, reason, run in now:
            letter = self.letters[letter_id]
            if letter["status"] != "open":
                continue
            self.carried.append(letter_id)
            at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            status = "discarded" if action == "discard" else self.outcome(letter)
            letter |= {"status": {"redrive": "redriven", "discard": "discarded"}[action]}
            letter[action] = {"by": subject, "at": at, "reason": reason, "run": run}
            again = None
            if status == "dead-lettered":
                again = f"{letter_id}~1"
                self.letters[again] = {**letter, "id": again, "status": "open", "createdAt": at, "redrives": 1}
            letter["outcome"] = {"status": status, "at": at, "deadLetter": again}

    def run(self, who: Who, run: str, *, outcomes: bool) -> dict[str, Any]:
        check_run(run)
        pending = sum(one[4] == run for one in self.pending)
        done = [
            letter
            for letter in self.letters.values()
            if who.organization in ("carebus", letter["organizationId"]) and letter["status"] != "open"
            if outcomes and run in [(letter[action] or {}).get("run") for action in ("redrive", "discard")]
        ]
        again = [one for one in done if one["outcome"]["status"] == "dead-lettered"]
        return {
            "pending": {"requests": pending, "deadLetters": pending},
            "outcomes": dict(Counter(one["outcome"]["status"] for one in done)),
            "again": [{"id": one["id"], "deadLetter": one["outcome"]["deadLetter"]} for one in again[:100]],
        }

    def reveal(self, who: Who, letter_id: str, reason: str) -> dict[str, Any]:
        if "operator-phi" not in who.roles:
            raise Refusal(403, "forbidden")
        letter = self.one(who, letter_id)
        self.revealed.append((letter_id, reason))
        return {
            "id": letter_id,
            "patientId": PATIENT,
            "key": PATIENT,
            "keyEncoding": "utf-8",
            "payload": letter["value"],
            "payloadEncoding": "json",
            "edited": letter["edited"],
        }

    def edit(self, who: Who, letter_id: str, body: dict[str, Any]) -> dict[str, Any]:
        reason = reason_of(body, {"value", "reason", "run"})
        if "operator-phi" not in who.roles:
            raise Refusal(403, "forbidden")
        letter = self.one(who, letter_id)
        if self.why_not(letter, "redrive"):
            raise Refusal(422, "not-allowed", "dead_letter_id", "not-open")
        if body["value"].get("patientId") != letter["value"]["patientId"]:
            raise Refusal(422, "not-allowed", "$.value.patientId", "the same as the record's")
        letter["edited"] = body["value"]
        self.pending.append((letter_id, "redrive", who.subject, reason, body.get("run")))
        return view(letter)

    def purge(self, who: Who, rest: list[str], method: str, body: dict[str, Any]) -> Any:
        if who.organization != "carebus":
            raise Refusal(403, "forbidden")
        if method == "GET":
            return self.purges[::-1]
        if not rest:
            asked = {"id": f"00000000-0000-4000-8000-{len(self.purges):012d}", "before": body["before"]}
            asked |= {"reason": reason_of(body, {"before", "reason"}), "requestedBy": who.subject, "deleted": 0}
            self.purges.append(
                asked | {"requestedAt": body["before"], "approvedBy": None, "approvedAt": None, "status": "requested"}
            )
            return self.purges[-1]
        purge = next((one for one in self.purges if one["id"] == rest[0]), None)
        if purge is None:
            raise Refusal(404, "not-found")
        if purge["requestedBy"] == who.subject:
            raise Refusal(422, "not-allowed")
        only(body, {"reason"})
        # It takes two calls, as one over a large store does.
        status = "done" if purge["status"] == "approved" else "approved"
        purge |= {"approvedBy": who.subject, "status": status, "deleted": purge["deleted"] + 7}
        return purge

    def consumer(self, who: Who, service: str) -> dict[str, Any]:
        if who.organization != "carebus":
            raise Refusal(403, "forbidden")
        return {
            "group": f"carebus-{service}",
            "topic": "medical.events.v1",
            "paused": self.paused if service == "processor" else None,
            "partitions": [
                {"partition": number, "committed": 10, "end": 10 + number, "lag": number} for number in range(3)
            ],
            "lag": 3,
            "parkedPatients": 2,
            "parkedEvents": 17,
            "openDeadLetters": sum(one["status"] == "open" for one in self.letters.values()),
            "pendingRequests": len(self.pending),
            "oldestWaitingSince": "2026-01-31T08:15:00.123000Z",
            "thisReplica": {"partitions": [0, 1, 2], "inFlight": 0, "storeAway": False, "brokerAway": False},
        }

    def tail(self, who: Who, topic: str, query: dict[str, str]) -> Response:
        only(query, {"limit", "cursor"})
        limit = int(query.get("limit", "20"))
        if topic not in {"medical.events.v1", "medical.events.dlq.v1", "claims.dlq.v1"} or not 1 <= limit <= 200:
            raise Refusal(404, "not-found")
        begin = int(query["cursor"]) if "cursor" in query else max(0, len(self.records) - limit)
        shown = self.records[begin : begin + limit]
        return JSONResponse({"data": shown, "page": {"next": str(begin + len(shown))}})

    def record(self, **changes: Any) -> None:
        """One more in every topic."""
        number = len(self.records)
        self.records.append(
            {
                "partition": 3,
                "offset": number,
                "timestamp": 1769847300000 + number,
                "organizationId": "north-hospital",
                "type": "observation",
                "eventId": f"e-{number}",
                "patient": HASH,
                "dlq": None,
                "payload": {"data": {"note": "•••"}},
                "payloadBytes": 30,
                **changes,
            }
        )


STATUSES = ("open", "redriven", "discarded")
ITEM = (
    *("id", "status", "reason", "blocking", "organizationId", "eventId", "patient", "type", "source", "failure"),
    *("redrives", "createdAt", "outcome", "previous"),
)


def view(letter: Letter) -> dict[str, Any]:
    more = {name: letter[name] for name in ("causes", "edits")}
    for action in ("redrive", "discard"):
        more[action] = letter[action] and {name: letter[action][name] for name in ("by", "at", "reason")}
    headers = [{"name": "ce_type", "value": "observation"}, {"name": "x-theirs", "value": None}]
    shown = {name: letter[name] for name in ITEM}
    return {**shown, **more, "attempts": 1, "headers": headers, "payload": mask(letter["value"]), "payloadBytes": 99}


def mask(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: mask(item) for name, item in value.items()}
    return "•••" if isinstance(value, str) else 0


def data(content: Any) -> Response:
    return JSONResponse({"data": content})


def key(letter: Letter) -> tuple[str, str]:
    return letter["createdAt"], letter["id"]


def cursor_of(cursor: str | None, bound: bytes) -> tuple[str, str] | None:
    if cursor is None:
        return None
    at, letter_id, of = msgspec.json.decode(bytes.fromhex(cursor))
    if of != bound.decode():
        raise Refusal(400, "invalid-request", "cursor", "a cursor of a list with the same filters")
    return at, letter_id


def only(given: dict[str, Any], allowed: set[str]) -> None:
    for name in given.keys() - allowed:
        raise Refusal(400, "invalid-request", name, "unknown name")


def check_run(run: str | None) -> str | None:
    if run is not None and not _UUID.fullmatch(run):
        raise Refusal(400, "invalid-request", "run", "a UUID")
    return run


def reason_of(body: dict[str, Any], allowed: set[str]) -> str:
    only(body, allowed)
    reason = body.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise Refusal(400, "invalid-request", "$.reason", "must say why")
    return reason
