"""Carebus claims."""
