"""Carebus ingest."""
