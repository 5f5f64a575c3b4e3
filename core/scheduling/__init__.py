"""Decisions about memory and time, pure: snapshots in, decisions out."""
