"""A sender that awaits each 202 before the patient's next event and writes every answer into its ledger."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import UUID

import httpx

from .ledger import Entry, Ledger

__all__ = ["Make", "Sender", "Session"]

# The n-th event (from 1) of a patient; None when there are no more.
Make = Callable[[str, int], Entry | None]

_TYPES = ("note", "admission", "transfer", "lab-result", "vital-signs", "medication-ordered", "discharge")
_UNANSWERED = (500, 502, 503, 504)


class Session:
    """The connections of a run's senders, and what they have seen."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        limits = httpx.Limits(max_connections=300, max_keepalive_connections=100)
        self.http = httpx.AsyncClient(timeout=15, limits=limits, trust_env=False)
        self.statuses: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()

    async def close(self) -> None:
        await self.http.aclose()


class Sender:
    """One organization's sender."""

    def __init__(self, session: Session, organization: str, token: str, rng: random.Random, ledger: Ledger) -> None:
        self.organization = organization
        self.ledger = ledger
        self.rng = rng
        self._session = session
        self._headers = {"Authorization": f"Bearer {token}"}
        self._due = 0.0

    def entry(self, patient: str, number: int, event_type: str | None = None, **data: Any) -> Entry:
        """An event yet to be sent; `patient` is the patientId."""
        event_id = str(UUID(int=self.rng.getrandbits(128), version=4))
        document = {
            "eventId": event_id,
            "patientId": patient,
            "type": event_type or self.rng.choice(_TYPES),
            "ts": datetime.now(UTC).isoformat(),
            "data": {**data, "n": number},
        }
        return Entry(event_id, f"{self.organization}/{patient}", number, document=document)

    def invalid(self, patient: str, number: int) -> Entry:
        """An event that no service may accept."""
        entry = self.entry(patient, number)
        assert entry.document is not None
        wrong: dict[str, Any] = self.rng.choice([{"ts": "yesterday"}, {"type": "No Type"}, {"data": [1]}, {"x": 1}])
        entry.document |= wrong
        entry.valid = False
        return entry

    async def send(
        self,
        patients: Iterable[str],
        make: Make,
        *,
        rate: float,
        workers: int = 6,
        batch: int = 50,
        duplicates: float = 0.0,
        give_up: float = 0.0,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Send every patient's events, `rate` a second in all, until there are none or `stop` is set.

        `batch` patients share a request; 1 sends single events. So many `duplicates` (a share) are sent beside them,
        of events accepted before. An unanswered event is sent again until it is accepted, but for a share of
        `give_up`, with which its sender goes on to the patient's next.
        """
        shares: list[deque[tuple[str, int]]] = [deque() for _ in range(workers)]
        for place, patient in enumerate(patients):
            shares[place % workers].append((patient, 1))
        self._due = monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number, share in enumerate(shares):
                url = self._session.urls[number % len(self._session.urls)]
                tasks.create_task(self._work(url, share, make, rate, batch, duplicates, give_up, stop))

    async def _work(
        self,
        url: str,
        share: deque[tuple[str, int]],
        make: Make,
        rate: float,
        batch: int,
        duplicates: float,
        give_up: float,
        stop: asyncio.Event | None,
    ) -> None:
        old: deque[Entry] = deque(maxlen=500)
        while share and not (stop and stop.is_set()):
            entries: list[Entry] = []
            for _ in range(min(batch, len(share))):
                patient, number = share.popleft()
                entry = make(patient, number)
                if entry is not None:
                    entries.append(entry)
                    share.append((patient, number + 1))
            for entry in entries:
                self.ledger.add(entry)
            again = [self.rng.choice(old) for _ in entries if old and self.rng.random() < duplicates]
            await self._pace(len(entries) + len(again), rate)
            await self.insist([*entries, *again], url=url, give_up=give_up)
            old.extend(entry for entry in entries if entry.accepted)

    def url(self, number: int) -> str:
        """One of the ways in."""
        return self._session.urls[number % len(self._session.urls)]

    async def _pace(self, count: int, rate: float) -> None:
        self._due = max(self._due, monotonic() - 1) + count / rate
        await asyncio.sleep(max(0.0, self._due - monotonic()))

    async def insist(self, entries: Sequence[Entry], *, url: str | None = None, give_up: float = 0.0) -> None:
        """Send until each is accepted, refused or given up."""
        left = list(entries)
        pause = 0.1
        while left:
            answers = await self.post(left, url=url)
            left = [
                entry
                for entry, answer in zip(left, answers, strict=True)
                if answer is None and not (give_up and self.rng.random() < give_up)
            ]
            if left:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, 1)

    async def post(self, entries: Sequence[Entry], *, url: str | None = None) -> list[int | None]:
        """One attempt, single or as a batch: what each was answered, noted in the ledger too."""
        url = url or self._session.urls[0]
        answers = await (self._single(entries[0], url) if len(entries) == 1 else self._batch(entries, url))
        for entry, answer in zip(entries, answers, strict=True):
            entry.answers.append(answer)
        return answers

    async def _single(self, entry: Entry, url: str) -> list[int | None]:
        answer = await self._ask(f"{url}/events", json.dumps(entry.document).encode(), "application/json")
        return [_verdict(answer.status_code) if answer else None]

    async def _batch(self, entries: Sequence[Entry], url: str) -> list[int | None]:
        body = b"\n".join(json.dumps(entry.document).encode() for entry in entries)
        answer = await self._ask(f"{url}/events/batch", body, "application/x-ndjson")
        if answer is None:
            return [None] * len(entries)
        if answer.status_code not in (202, 207):
            return [_verdict(answer.status_code)] * len(entries)
        return [_item_verdict(item) for item in answer.json()["data"]]

    async def _ask(self, url: str, body: bytes, content_type: str) -> httpx.Response | None:
        headers = {**self._headers, "Content-Type": content_type}
        try:
            answer = await self._session.http.post(url, content=body, headers=headers)
        except httpx.HTTPError as error:
            self._session.failures[type(error).__name__] += 1
            return None
        self._session.statuses[str(answer.status_code)] += 1
        return answer


def _verdict(status: int) -> int | None:
    return None if status in _UNANSWERED else status


def _item_verdict(item: Mapping[str, Any]) -> int | None:
    if item["status"] == "accepted":
        return 202
    return None if item["error"]["code"] == "unavailable" else 400
