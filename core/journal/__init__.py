"""The journal: events in, frames out, one hash chain; see docs/explanation for its rules."""
