"""Renderings of a task's stream: pure functions from entries to bytes, one module per API."""
