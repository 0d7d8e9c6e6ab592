"""The users of the benchmark: what they ask, what must come of it, and how long it took."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import msgspec
from data import ORIGIN, PATIENTS, PROCESSORS, PROVIDERS, STATUSES, Population

from carebus_claims.claim import Claim, Status, shown
from carebus_claims.claim_models import ListQuery
from carebus_common.http.cursor import CursorCodec
from carebus_common.testing.tokens import Issuer

Check = Callable[[Any], bool]
_BOUNDS = {"sort", "from", "to", "minTotal", "maxTotal"}
_SORTS = ("-createdAt", "createdAt", "total", "-total", "updatedAt", "-updatedAt")


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and whether an answer with status 200 is the right one."""

    method: str
    path: str
    authorization: str
    right: Check
    body: bytes = b""
    status: int = 200

    def raw(self) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: bench\r\nAuthorization: {self.authorization}\r\n"
        if self.body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n"
        return f"{head}\r\n".encode() + self.body


@dataclass
class Timings:
    """Milliseconds by what was asked."""

    by_name: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, name: str, milliseconds: float, path: str) -> None:
        self.by_name.setdefault(name, []).append(milliseconds)
        if len(self.by_name[name]) > 1 and milliseconds > 40 and len(self.slowest) < 5000 and "no thinking" not in name:
            self.slowest.append((milliseconds, f"{name}: {path}"))

    def print(self) -> None:
        print("| what | requests | a second | p50 ms | p99 ms | max ms |")
        print("|---|---|---|---|---|---|")
        for name, times in self.by_name.items():
            times.sort()
            rate = f"{self.rates[name]:.0f}" if name in self.rates else ""
            p50, p99 = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
            print(f"| {name} | {len(times)} | {rate} | {p50:.1f} | {p99:.1f} | {times[-1]:.1f} |")


class Questions:
    """Of random users of random organizations."""

    def __init__(self, population: Population, issuer: Issuer, rng: random.Random) -> None:
        self._population = population
        self._rng = rng
        self._cursors = CursorCodec("the key of the benchmark's audit")
        self._issuer = issuer
        self._tokens: dict[tuple[Any, ...], str] = {}
        self._totals: dict[int, dict[str, tuple[int, str]]] = {}

    def _bearer(self, organization: int, role: str, subject: str = "bench", patient_id: str | None = None) -> str:
        known = self._tokens.get(key := (organization, role, subject, patient_id))
        if known is None:
            more = {"patientId": patient_id} if patient_id else {}
            name = self._population.organizations[organization]
            known = self._tokens[key] = self._issuer.bearer(name, [role], lifetime=7200, sub=subject, **more)
        return known

    def some_claims(self, count: int) -> list[tuple[int, int]]:
        """(organization, number) each."""
        organizations = len(self._population.organizations)
        return [(self._rng.randrange(organizations), self._rng.randrange(self._population.each)) for _ in range(count)]

    def get_one_of(self, some: list[tuple[int, int]]) -> Question:
        return self.get(self._rng.choice(some))

    def get(self, which: tuple[int, int]) -> Question:
        claim = self._population.claim(*which)
        expected = shown(claim)
        return Question(
            "GET",
            f"/claims/{claim.claim_id}",
            self._bearer(which[0], "admin"),
            lambda body: bool(body["data"] == expected),
        )

    def hot_list(self) -> Question:
        """The first page of what a processor has to do, or of what is new."""
        organization = self._rng.randrange(min(25, len(self._population.organizations)))
        if self._rng.random() < 0.5:
            return self._list(organization, {"status": "pending"}, {}, None)
        return self._list(organization, {}, {}, None)

    def list(self) -> Question:
        """A page of 50 anywhere in a list with random filters and order, for a random role."""
        rng = self._rng
        organization = rng.randrange(len(self._population.organizations))
        place = self._population.claim(organization, rng.randrange(self._population.each))
        filters: dict[str, str] = {"sort": rng.choice(_SORTS)}
        if rng.random() < 0.5:
            filters["status"] = str(rng.choice(STATUSES)) if rng.random() < 0.8 else "pending,under_review"
        if rng.random() < 0.2:
            filters["patientId"] = f"patient-{rng.randrange(PATIENTS)}"
        if rng.random() < 0.2:
            filters["providerId"] = f"provider-{rng.randrange(PROVIDERS)}"
        if rng.random() < 0.2:
            filters["assignedProcessorId"] = f"processor-{rng.randrange(PROCESSORS)}"
        if rng.random() < 0.3:
            since = ORIGIN - timedelta(days=rng.randrange(30, 365))
            filters["from"] = since.isoformat().replace("+00:00", "Z")
            filters["to"] = (since + timedelta(days=rng.choice((1, 7, 30)))).isoformat().replace("+00:00", "Z")
        if rng.random() < 0.2:
            least = rng.randrange(0, 900)
            filters["minTotal"], filters["maxTotal"] = str(least), str(least + rng.choice((5, 50, 500)))
        scope: dict[str, str] = {}
        match rng.random():
            case chance if chance < 0.15:
                scope = {"assignedProcessorId": f"processor-{rng.randrange(PROCESSORS)}"}
            case chance if chance < 0.25:
                scope = {"providerId": f"provider-{rng.randrange(PROVIDERS)}"}
            case chance if chance < 0.3:
                scope = {"patientId": f"patient-{rng.randrange(PATIENTS)}"}
        # A page ends within the bounds of its list, so only such a place comes in a cursor.
        within = self._in_bounds(shown(place), filters)
        return self._list(organization, filters, scope, place if within and rng.random() < 0.9 else None)

    def _list(self, organization: int, filters: dict[str, str], scope: dict[str, str], place: Claim | None) -> Question:
        query = dict(filters)
        sort = filters.get("sort", "-createdAt")
        if place is not None:
            query["cursor"] = self._cursor(organization, filters, sort, place)
        if "assignedProcessorId" in scope:
            bearer = self._bearer(organization, "processor", scope["assignedProcessorId"])
        elif "providerId" in scope:
            bearer = self._bearer(organization, "provider", scope["providerId"])
        elif "patientId" in scope:
            bearer = self._bearer(organization, "patient", patient_id=scope["patientId"])
        else:
            bearer = self._bearer(organization, "admin")
        wanted = [*filters.items(), *scope.items()]

        def right(body: Any) -> bool:
            claims, following = body["data"], body["page"]["next"]
            keys = [_sort_key(claim, sort.lstrip("-")) for claim in claims]
            ordered = keys == sorted(keys, reverse=sort.startswith("-"))
            after = True
            if place is not None and keys:
                start = _sort_key(shown(place), sort.lstrip("-"))
                after = keys[0] < start if sort.startswith("-") else keys[0] > start
            whole = len(claims) == 50 if following else len(claims) <= 50
            return ordered and after and whole and all(self._is(organization, claim, wanted) for claim in claims)

        return Question("GET", f"/claims?{urlencode(query)}", bearer, right)

    def _cursor(self, organization: int, filters: dict[str, str], sort: str, place: Claim) -> str:
        """As the page before would have given it; the service's key is the benchmark's own."""
        bound = {
            "list": "claims",
            **ListQuery.model_validate(filters).model_dump(mode="json", exclude={"cursor", "limit"}),
        }
        value: str | int = str(place.total)
        if sort.lstrip("-") != "total":
            at = place.created_at if sort.endswith("createdAt") else place.updated_at
            value = round(at.timestamp() * 1000)
        name = self._population.organizations[organization]
        return self._cursors.encode([value, place.claim_id], organization_id=name, query=bound)

    def _is(self, organization: int, claim: Any, wanted: Iterable[tuple[str, str]]) -> bool:
        """Whether the claim is one of the organization's as it should be, and what was asked for."""
        number = UUID(claim["claimId"]).int
        if number >> 100 != organization:
            return False
        # Claims that a bulk request made have numbers from a million on.
        if (n := number & 0xFFFFFFFF) < self._population.each and claim != shown(
            self._population.claim(organization, n)
        ):
            return False
        others = [(name, value) for name, value in wanted if name not in _BOUNDS]
        return self._in_bounds(claim, dict(wanted)) and all(
            claim["status"] in value.split(",") if name == "status" else claim[name] == value for name, value in others
        )

    def _in_bounds(self, claim: Any, filters: dict[str, str]) -> bool:
        created, total = claim["createdAt"][:19], Decimal(claim["total"])
        since, until = filters.get("from", "0")[:19], filters.get("to", "9")[:19]
        return since <= created < until and (
            Decimal(filters.get("minTotal", 0)) <= total <= Decimal(filters.get("maxTotal", "Infinity"))
        )

    def add_up(self) -> None:
        """What the dashboards of the first organizations must show; takes seconds, so before anything is timed."""
        for organization in range(min(5, len(self._population.organizations))):
            expected = {str(status): (0, Decimal(0)) for status in Status}
            for claim in self._population.of(organization):
                count, total = expected[str(claim.status)]
                expected[str(claim.status)] = count + 1, total + claim.total
            self._totals[organization] = {name: (n, f"{total:.2f}") for name, (n, total) in expected.items()}

    def dashboard(self) -> Question:
        organization = self._rng.choice(list(self._totals))
        totals = self._totals[organization]

        def right(body: Any) -> bool:
            data = body["data"]
            found = {each["status"]: (each["count"], each["total"]) for each in data["statuses"]}
            still_open = sum(
                totals[str(status)][0] for status in (Status.SUBMITTED, Status.UNDER_REVIEW, Status.PENDING)
            )
            aged, worked = (
                sum(each[name] for each in data[part]) for part, name in (("ageing", "count"), ("workload", "open"))
            )
            return found == totals and aged == worked == still_open

        return Question("GET", "/claims/dashboard", self._bearer(organization, "admin"), right)

    def bulk_create(self, n: int) -> tuple[Question, list[str]]:
        """1,000 claims of one organization; their ids."""
        organization = n % len(self._population.organizations)
        ids = [self._population.claim_id(organization, 1_000_000 * (n + 1) + k) for k in range(1000)]
        claims = [
            {"claimId": each, "patientId": f"patient-{k}", "currency": "CAD", "assignedProcessorId": "processor-1",
             "lines": [{"code": "99213", "units": 1, "amount": "136.80"}, {"code": "99214", "amount": "20.00"}]}
            for k, each in enumerate(ids)
        ]  # fmt: skip
        return self._bulk("POST", organization, {"claims": claims}, 201), ids

    def bulk_update(self, n: int, ids: list[str]) -> Question:
        organization = n % len(self._population.organizations)
        updates = [{"claimId": each, "version": 1, "status": "under_review", "reason": "bench"} for each in ids]
        return self._bulk("PATCH", organization, {"updates": updates}, 200)

    def _bulk(self, method: str, organization: int, body: Any, status: int) -> Question:
        def right(answer: Any) -> bool:
            data = answer["data"]
            return bool(data["succeeded"] == 1000 and all(each["status"] == status for each in data["results"]))

        bearer = self._bearer(organization, "admin")
        return Question(method, "/claims/bulk", bearer, right, msgspec.json.encode(body))


def _sort_key(claim: Any, name: str) -> tuple[Any, str]:
    value = claim[name]
    return (Decimal(value) if name == "total" else value), claim["claimId"]


class _Connection:
    """One keep-alive connection: what a user's browser has, without the browser's own time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, question: Question) -> tuple[float, int, bytes]:
        raw = question.raw()
        began = time.perf_counter()
        self._writer.write(raw)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await self._reader.readexactly(length)
        return (time.perf_counter() - began) * 1000, int(head[9:12]), body

    def close(self) -> None:
        self._writer.close()


async def _ask(connection: _Connection, question: Question) -> float:
    milliseconds, status, body = await connection.ask(question)
    if status != question.status:
        raise SystemExit(f"{question.method} {question.path}: {status} {body[:500]!r}")
    if not question.right(msgspec.json.decode(body)):
        raise SystemExit(f"{question.method} {question.path}: a wrong answer: {body[:2000]!r}")
    return milliseconds


async def _connect(address: tuple[str, int]) -> _Connection:
    return _Connection(*await asyncio.open_connection(*address, limit=64 * 1024 * 1024))


async def one_after_another(address: tuple[str, int], timings: Timings, name: str, questions: list[Question]) -> None:
    connection = await _connect(address)
    for question in questions:
        timings.add(name, await _ask(connection, question), question.path)
    connection.close()


async def closed_loop(
    address: tuple[str, int],
    timings: Timings,
    name: str,
    users: int,
    seconds: float,
    rate: float | None,
    next_question: Callable[[], Question],
) -> None:
    """Each user asks, waits for the answer, thinks for `users / rate` seconds on average, and asks again."""
    until = time.perf_counter() + seconds
    asked = 0

    async def user() -> None:
        nonlocal asked
        connection = await _connect(address)
        if rate is not None:
            await asyncio.sleep(random.random() * users / rate)
        while time.perf_counter() < until:
            question = next_question()
            timings.add(name, await _ask(connection, question), question.path)
            asked += 1
            if rate is not None:
                await asyncio.sleep(random.expovariate(rate / users))
        connection.close()

    async with asyncio.TaskGroup() as all_of_them:
        for _ in range(users):
            all_of_them.create_task(user())
    timings.rates[name] = asked / seconds
