"""`GET /events/{id}`: claims first, then the processor; the first one who knows answers."""

from __future__ import annotations

from typing import Any

import pytest

URL = "/events/0190b5c2-0000-7000-8000-000000000000?partition=1&offset=2"
REFUSAL = {"error": {"code": "c", "message": "m", "details": [], "requestId": "r"}}


@pytest.mark.parametrize(
    ("claims", "processor", "expected", "asked"),
    [
        (200, 200, (200, "claims"), ["claims"]),
        (403, 200, (403, "claims"), ["claims"]),
        (400, 200, (400, "claims"), ["claims"]),
        (404, 200, (200, "processor"), ["claims", "processor"]),
        (404, 404, (404, "claims"), ["claims", "processor"]),
        # A role that the processor does not serve is no better informed by its refusal.
        (404, 403, (404, "claims"), ["claims", "processor"]),
        # Nobody can say that there is none while one of the two cannot be asked.
        (404, 503, (503, "processor"), ["claims", "processor"]),
        (404, "away", (503, None), ["claims"]),
        (503, 200, (200, "processor"), ["claims", "processor"]),
        (503, 404, (503, "claims"), ["claims", "processor"]),
        ("away", 200, (200, "processor"), ["processor"]),
        ("away", 404, (503, None), ["processor"]),
        ("away", "away", (503, None), []),
    ],
)
async def test_the_first_one_who_knows_answers(
    front: Any, kit: Any, claims: Any, processor: Any, expected: tuple[int, str | None], asked: list[str]
) -> None:
    for name, status in (("claims", claims), ("processor", processor)):
        server = getattr(front, name)
        if status == "away":
            await server.stop()
        else:
            body = {"data": {"from": name}} if status == 200 else {"error": {**REFUSAL["error"], "message": name}}
            server.behave = kit.answer(status, body)

    answer = await front.get(URL)

    status, who = expected
    assert answer.status_code == status
    told = answer.json()["data"]["from"] if status == 200 else answer.json()["error"]["message"]
    assert who is None or told == who
    assert [name for name in ("claims", "processor") if getattr(front, name).requests] == asked
    assert all(request.target == URL for request in [*front.claims.requests, *front.processor.requests])
