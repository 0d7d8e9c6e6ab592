"""Carebus cli."""
