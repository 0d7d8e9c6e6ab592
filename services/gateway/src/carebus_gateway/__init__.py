"""Carebus gateway."""
