"""The ops API of a service that consumes: dead letters, its consumer, its topics, and who did what to them."""

from carebus_common.ops.indexes import create_indexes
from carebus_common.ops.operations import Replica
from carebus_common.ops.routes import OpsSettings, operations_routes

__all__ = ["OpsSettings", "Replica", "create_indexes", "operations_routes"]
