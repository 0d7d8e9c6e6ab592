"""Kafka, a MongoDB-compatible store and Valkey as child processes, and a supervisor for them and the services."""
