"""`carebus dlq`: dead letters, for whoever is on call."""
