"""What an operator does in an experiment: redrive and discard."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from .harness import Chaos

__all__ = ["redrive_all"]


async def redrive_all(chaos: Chaos, organization: str) -> int:
    """Ask for the redrive of every open dead letter of the organization; how many that were."""
    letters = chaos.reader.processor["dead_letters"]
    wanted: dict[tuple[str, int], list[str]] = {}
    async for row in letters.find({"organizationId": organization, "status": "open", "blocking": True}):
        wanted.setdefault((row["source"]["topic"], row["source"]["partition"]), []).append(row["_id"])
    for (topic, partition), ids in wanted.items():
        for begin in range(0, len(ids), 500):
            await chaos.reader.processor["dead_letter_requests"].insert_one(
                _request(topic, partition, ids[begin : begin + 500], organization)
            )
    return sum(map(len, wanted.values()))


def _request(topic: str, partition: int, ids: list[str], organization: str) -> dict[str, Any]:
    return {
        "_id": str(uuid4()),
        "topic": topic,
        "partition": partition,
        "action": "redrive",
        "deadLetterIds": ids,
        "by": "chaos",
        "organizationId": organization,
        "reason": "the harness has solved the problem",
        "requestedAt": datetime.now(UTC),
    }
