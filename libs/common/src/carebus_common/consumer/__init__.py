"""The ordered, exactly-once consumer runtime: what architecture calls "what a consumer promises"."""

from carebus_common.consumer.change import Change, Delivery, Handler, PatientEvent, Position, State
from carebus_common.consumer.errors import ConsumerError, DeadLetter, PauseConsumption, RetryLater
from carebus_common.consumer.failures import FailureLimits
from carebus_common.consumer.recorder import Recorder, open_recorder
from carebus_common.consumer.records import Subscription
from carebus_common.consumer.retry import RetryPolicy
from carebus_common.consumer.runtime import Limits, OrderedConsumer, Status
from carebus_common.consumer.store import Effects, Moved, Store

__all__ = [
    "Change",
    "ConsumerError",
    "DeadLetter",
    "Delivery",
    "Effects",
    "FailureLimits",
    "Handler",
    "Limits",
    "Moved",
    "OrderedConsumer",
    "PatientEvent",
    "PauseConsumption",
    "Position",
    "Recorder",
    "RetryLater",
    "RetryPolicy",
    "State",
    "Status",
    "Store",
    "Subscription",
    "open_recorder",
]
