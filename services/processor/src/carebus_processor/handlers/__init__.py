"""What each event does to its patient: plain functions from state and event to the change."""

from carebus_processor.handlers.apply import Outcome, apply
from carebus_processor.handlers.change import handle_event

__all__ = ["Outcome", "apply", "handle_event"]
