"""Writes the documents that the code determines: `make docs`. `tests/docs/test_drift.py` compares them.

Nothing here connects to anything; every document is the same text for the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from carebus_common.contracts.topics import TOPICS, TopicDefinition

ROOT = Path(__file__).parents[1]


def topics() -> str:
    """`deploy/kafka/topics.yaml`: for brokers that other tools look after."""
    definitions = [
        {"name": topic.name, "partitions": topic.partitions, "config": configuration(topic)} for topic in TOPICS
    ]
    head = "# For tools other than `carebus topics apply`, which reads carebus_common/contracts/topics.py itself.\n"
    return head + as_yaml(definitions)


def configuration(topic: TopicDefinition) -> dict[str, str]:
    """A topic's settings by Kafka's names."""
    return {"retention.ms": str(int(topic.retention.total_seconds() * 1000)), **topic.settings}


def as_yaml(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120, allow_unicode=True)


DOCUMENTS: dict[str, Callable[[], str]] = {
    "deploy/kafka/topics.yaml": topics,
}


def main() -> None:
    for path, document in DOCUMENTS.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(document())
        print(path)  # noqa: T201


if __name__ == "__main__":
    main()
