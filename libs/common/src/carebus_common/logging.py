"""Logs: one line per entry, JSON in production, never a patient's data.

Entries go to stderr with `timestamp`, `level`, `logger`, `event`, `service` and what is bound to the context
(`request_id`, `event_id`, `organization_id`). Events are slugs, so that one grep finds them; values are fields.
Exceptions show their classes and frames; their messages only where the class cannot quote a document (a
pydantic or duplicate-key error quotes the very values that must not be here).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import IO, Any, Final

import structlog
from aiokafka.errors import KafkaError
from pymongo.errors import ConnectionFailure

from carebus_common.errors import CarebusError
from carebus_common.settings import LogSettings

__all__ = ["configure", "get_logger", "patient_hash"]

# Their messages name hosts, topics and time-outs, or were written by us under the rule of the error tree.
_SPEAKING: Final = (CarebusError, ConnectionFailure, KafkaError, OSError)
# What they say below these levels holds commands, records or URLs whole, and with them patient data.
_FLOORS: Final = {
    "aiokafka": logging.INFO,
    "asyncio": logging.INFO,
    "faststream": logging.INFO,
    "httpcore": logging.INFO,
    "httpx": logging.WARNING,
    "pymongo": logging.INFO,
}

_INSTALLED_AT: Final = re.compile(r"^.*/(?:site-packages|src)/")

_patient_key = os.urandom(32)
_service = "carebus"


def configure(settings: LogSettings, *, service: str, stream: IO[str] | None = None) -> None:
    """Send structlog and stdlib logging (uvicorn, aiokafka, pymongo) to `stream` (stderr) in `settings.log_format`.

    May be called again; the last call holds.
    """
    global _patient_key, _service  # noqa: PLW0603 - they belong to the process, like the logging itself
    _service = service
    if settings.log_hash_key is not None:
        _patient_key = settings.log_hash_key.get_secret_value().encode()
    render: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=(stream or sys.stderr).isatty())
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_PROCESSORS,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
            keep_exc_info=False,
            keep_stack_info=False,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        # A server that was started with uvicorn's own configuration leaves them to themselves.
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name, floor in _FLOORS.items():
        logging.getLogger(name).setLevel(max(floor, root.level))


def get_logger(name: str) -> Any:
    """A structlog logger: `log.info("event-accepted", event_id=…)`."""
    return structlog.stdlib.get_logger(name)


def patient_hash(organization_id: str, patient_id: str) -> str:
    """What logs say instead of a patient id: 16 hexadecimal digits, the same for the same patient.

    Keyed with `CAREBUS_LOG_HASH_KEY` (without it with a key of this process only), so that nobody can find the
    patient by hashing all ids.
    """
    message = f"{len(organization_id)}:{organization_id}{patient_id}".encode("utf-8", "surrogatepass")
    return hmac.new(_patient_key, message, hashlib.sha256).hexdigest()[:16]


def _with_service(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    entry["service"] = _service
    return entry


def _exceptions_without_values(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Replace `exc_info` by `error`: the chain of classes and, innermost last, the frames."""
    exc_info = entry.pop("exc_info", None)
    if not exc_info:
        return entry
    if isinstance(exc_info, BaseException):
        error: BaseException | None = exc_info
    elif isinstance(exc_info, tuple):
        error = exc_info[1]
    else:
        error = sys.exc_info()[1]
    if error is None:
        return entry
    entry["error"] = " <- ".join(_named(link) for link in _chain(error))
    entry["frames"] = [
        f"{_INSTALLED_AT.sub('', frame.filename)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    return entry


def _chain(error: BaseException) -> list[BaseException]:
    """The error, then what caused it, and so on."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return chain


def _named(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        return f"{name}[{', '.join(_named(member) for member in error.exceptions)}]"
    return f"{name}: {error}" if isinstance(error, _SPEAKING) else name


def _one_line(_logger: Any, _method: str, entry: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Escape what would break a line or confuse a terminal; whoever chose a value cannot forge an entry."""
    for key, value in entry.items():
        if isinstance(value, str) and not value.isprintable():
            entry[key] = value.encode("unicode_escape").decode("ascii")
    return entry


class _Logger(structlog.stdlib.BoundLogger):
    def exception(self, event: str | None = None, *args: Any, **kw: Any) -> Any:
        """As `error`: `exception` of the stdlib would attach the traceback, with its values, once more."""
        kw.setdefault("exc_info", True)
        return self.error(event, *args, **kw)


_PROCESSORS: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _with_service,
    _exceptions_without_values,
    _one_line,
]

# At import, since structlog as it comes prints exceptions with the values of all local variables.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        *_PROCESSORS,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    wrapper_class=_Logger,
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
