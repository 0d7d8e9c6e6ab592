"""Carebus processor."""
