"""Carebus local."""
