"""What ships beside the real things for tests: fakes and helpers."""
