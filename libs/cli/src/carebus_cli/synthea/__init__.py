"""A Synthea export (CSV) as medical events: read, map, put in time order."""
