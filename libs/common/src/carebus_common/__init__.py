"""Carebus common."""
