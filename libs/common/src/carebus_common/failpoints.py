"""Named places in the code where a test may have the process die or stop, to prove that nothing is lost there.

    failpoint("after-transaction")

does nothing: unless `CAREBUS_FAILPOINTS` is set when this module is imported, `failpoint` is an empty function.
`CAREBUS_FAILPOINTS="after-transaction=crash@0.01,before-emit=stop@n5"` arms it: `crash` ends the process with
SIGKILL, `stop` halts it with SIGSTOP until somebody else sends SIGCONT. `@0.01` strikes at each pass with that
probability, `@n5` at the fifth pass of the process. What struck is written to stderr first.

An armed process refuses to start unless `CAREBUS_ENVIRONMENT` is `development` or `test`. What it is armed with may
be changed while it runs (`Armed.rules`), but a process that was not armed at its start never is.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["NAMES", "Armed", "FailpointsRefused", "armed", "failpoint"]

NAMES: Final = (
    "before-transaction",
    "after-transaction",
    "before-emit",
    "after-emit",
    "before-dlq-ack",
    "after-dlq-ack",
    "before-offset-commit",
    "after-offset-commit",
    "before-unpark",
    "after-unpark",
    "before-claims-commit",
    "after-claims-commit",
    "before-change-message",
    "after-change-message",
)
_SIGNALS: Final = {"crash": signal.SIGKILL, "stop": signal.SIGSTOP}
_RULE: Final = re.compile(r"(?P<name>[a-z-]+)=(?P<action>[a-z]+)@(?:n(?P<nth>[1-9]\d*)|(?P<chance>\d(?:\.\d+)?))")


class FailpointsRefused(Exception):
    """`CAREBUS_FAILPOINTS` is not understood, or set where no failpoint may be."""


@dataclass(frozen=True, slots=True)
class _Rule:
    action: str
    nth: int | None
    chance: float

    def strikes(self, passes: int) -> bool:
        return passes == self.nth if self.nth is not None else random.random() < self.chance  # noqa: S311


class Armed:
    """What `failpoint` is in an armed process. Raises FailpointsRefused for rules that are not understood."""

    def __init__(self, rules: str) -> None:
        self._passes: Counter[str] = Counter()
        self.rules = rules

    @property
    def rules(self) -> str:
        """As in `CAREBUS_FAILPOINTS`; "" for none. Setting it begins to count passes anew."""
        return self._text

    @rules.setter
    def rules(self, text: str) -> None:
        self._rules = dict(_read(part.strip()) for part in text.split(",")) if text else {}
        self._text = text
        self._passes.clear()

    def __call__(self, name: str) -> None:
        if name not in NAMES:
            raise FailpointsRefused(f"no such failpoint: {name}")
        self._passes[name] += 1
        rule = self._rules.get(name)
        if rule is not None and rule.strikes(self._passes[name]):
            os.write(2, f"failpoint {name}: {rule.action} at pass {self._passes[name]}\n".encode())
            os.kill(os.getpid(), _SIGNALS[rule.action])


def armed(environ: Mapping[str, str]) -> Armed | None:
    """What carries out what `environ` asks for; None if that is nothing. Raises FailpointsRefused."""
    text = environ.get("CAREBUS_FAILPOINTS", "").strip()
    if not text:
        return None
    if environ.get("CAREBUS_ENVIRONMENT") not in ("development", "test"):
        raise FailpointsRefused("CAREBUS_FAILPOINTS is for tests: CAREBUS_ENVIRONMENT must be development or test")
    return Armed(text)


def _read(part: str) -> tuple[str, _Rule]:
    found = _RULE.fullmatch(part)
    if found is None or found["name"] not in NAMES or found["action"] not in _SIGNALS:
        raise FailpointsRefused(f"not understood: {part!r}; write NAME=crash@0.01 or NAME=stop@n5")
    nth = int(found["nth"]) if found["nth"] else None
    return found["name"], _Rule(found["action"], nth, float(found["chance"] or 0))


def _pass_by(name: str) -> None:
    """Nothing."""


failpoint: Final[Callable[[str], None]] = armed(os.environ) or _pass_by
