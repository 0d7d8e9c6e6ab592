"""What one operation reads of the claims service: over HTTP, with the caller's own token, each thing once.

The service decides who sees what, as it does for REST. Claims and patients asked for by id in the same moment are read
together; whatever is asked for twice is read once; never more than a few requests run at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any, ClassVar, Final, TypeAlias
from urllib.parse import quote, urlencode
from uuid import UUID

import msgspec
from strawberry.dataloader import DataLoader

from carebus_common.errors import BadGateway, CarebusError
from carebus_common.tracing import child_of
from carebus_gateway.proxy import Answer, Outgoing, Upstream

__all__ = ["ForCaller", "Reader", "Record"]

Record = Mapping[str, Any]
_Loaded: TypeAlias = Record | BaseException | None

# A page of the claims service holds no more (`carebus_common.http.query.MAX_LIMIT`).
_BATCH: Final = 200
_PATIENTS: Final = 50
_LONGEST_PATIENT_ID: Final = 128
# A service refuses 16 KiB of headers, the request line among them.
_LONGEST_QUERY: Final = 8 * 1024
_MAX_ANSWER: Final = 16 * 1024 * 1024


class _Refused(CarebusError):
    """A refusal of the claims service, in its own words: they hold no patient data there either."""

    status: ClassVar[int] = 502
    code: ClassVar[str] = "bad-gateway"

    def __init__(self, status: int, code: str, message: str, details: Sequence[Record]) -> None:
        super().__init__(message, details=details)
        # Of this refusal, and not of its class.
        self.status, self.code = status, code  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class ForCaller:
    """On whose behalf: what goes along with each request."""

    authorization: str
    request_id: str
    traceparent: str
    tracestate: str | None = None

    def headers(self) -> list[tuple[str, str]]:
        """Each request is a child of its own in the caller's trace."""
        headers = [
            ("authorization", self.authorization),
            ("x-request-id", self.request_id),
            ("traceparent", child_of(self.traceparent)),
            ("accept", "application/json"),
        ]
        return headers if self.tracestate is None else [*headers, ("tracestate", self.tracestate)]


class Reader:
    """Reads for one operation; made anew for each, so that nobody sees what another was allowed to."""

    def __init__(self, claims: Upstream, caller: ForCaller, *, at_once: int, limit: timedelta) -> None:
        self._upstream = claims
        self._caller = caller
        self._limit = limit
        self._turn = asyncio.Semaphore(at_once)
        self._answers: dict[str, asyncio.Task[Record | None]] = {}
        self._claims: DataLoader[str, Record | None] = DataLoader(self._load_claims, max_batch_size=_BATCH)
        self._patients: DataLoader[str, Record | None] = DataLoader(self._load_patients, max_batch_size=_PATIENTS)

    async def claim(self, claim_id: str) -> Record | None:
        """The claim, or None if there is none that the caller may see. Raises CarebusError."""
        try:
            return await self._claims.load(str(UUID(claim_id)))
        except ValueError:
            return None  # What is no UUID is the id of no claim.

    async def patient(self, patient_id: str) -> Record | None:
        """The patient at a glance, or None. Raises CarebusError."""
        if not 0 < len(patient_id) <= _LONGEST_PATIENT_ID:
            return None
        return await self._patients.load(patient_id)

    async def page(self, path: Sequence[str], parameters: Mapping[str, Any]) -> Record | None:
        """`{"data": […], "page": {"next"}}` of a list; None if what it belongs to is not there for the caller.

        `path` is in segments; parameters that are None are left out. Raises CarebusError.
        """
        if "" in path:
            return None
        target = "".join(f"/{quote(segment, safe='')}" for segment in path)
        query = urlencode({name: value for name, value in parameters.items() if value is not None}, quote_via=quote)
        return await self._get(f"{target}?{query}")

    async def close(self) -> None:
        """Give up what is still being read."""
        for task in self._answers.values():
            task.cancel()
        await asyncio.gather(*self._answers.values(), return_exceptions=True)

    async def _load_claims(self, ids: list[str]) -> list[_Loaded]:
        query = urlencode({"claimId": ",".join(ids), "limit": len(ids)})
        return await self._load(ids, f"/claims?{query}", "claimId", "/claims/")

    async def _load_patients(self, ids: list[str]) -> list[_Loaded]:
        query = urlencode({"patientId": ",".join(quote(patient_id, safe="") for patient_id in ids)})
        if len(query) > _LONGEST_QUERY and len(ids) > 1:
            half = len(ids) // 2
            return [*await self._load_patients(ids[:half]), *await self._load_patients(ids[half:])]
        return await self._load(ids, f"/patients?{query}", "patientId", "/patients/")

    async def _load(self, ids: list[str], together: str, key: str, alone: str) -> list[_Loaded]:
        """What each id stands for, asked for together; one by one for a single one, or where that is not known."""
        if len(ids) > 1:
            try:
                answer = await self._get(together)
            except CarebusError as error:
                if error.status != HTTPStatus.BAD_REQUEST:
                    return [error for _ in ids]
                answer = None
            if answer is not None:
                found = {record[key]: record for record in answer["data"]}
                return [found.get(one) for one in ids]
        return list(await asyncio.gather(*(self._load_one(alone + quote(one, safe="")) for one in ids)))

    async def _load_one(self, target: str) -> _Loaded:
        try:
            answer = await self._get(target)
        except CarebusError as error:
            return error
        return None if answer is None else answer["data"]

    async def _get(self, target: str) -> Record | None:
        task = self._answers.get(target)
        if task is None:
            task = self._answers[target] = asyncio.create_task(self._ask(target))
        # Several may wait for it: one that is cancelled takes nothing from the others.
        return await asyncio.shield(task)

    async def _ask(self, target: str) -> Record | None:
        async with self._turn:
            answer = await self._upstream.send(Outgoing("GET", target, self._caller.headers()), self._limit)
            body = await _whole(answer)
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        try:
            content: Any = msgspec.json.decode(body)
            if answer.status < 400:
                return _enveloped(content)
            error = content["error"]
            raise _Refused(answer.status, str(error["code"]), str(error["message"]), error.get("details", []))
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
            raise BadGateway("The service behind gave no proper answer.") from None


async def _whole(answer: Answer) -> bytes:
    """Raises BadGateway, GatewayTimeout."""
    if answer.more is None:
        return answer.body
    body = bytearray(answer.body)
    try:
        while part := await answer.more():
            body += part
            if len(body) > _MAX_ANSWER:
                raise BadGateway("The answer of the service behind is too long.")
    finally:
        answer.close()
    return bytes(body)


def _enveloped(content: Any) -> Record:
    if not isinstance(content, dict) or "data" not in content:
        raise TypeError("no envelope")
    return content
