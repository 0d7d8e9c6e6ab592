"""A Kafka message to publish and the broker's receipt for it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Message", "Receipt"]


@dataclass(frozen=True, slots=True)
class Message:
    """Key, value and headers byte for byte; messages of one key reach the topic in the order published."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where the broker stored an acknowledged message."""

    partition: int
    offset: int
