"""Projections: pure folds of the journal's events. No clock, no I/O, no randomness, no plugins (JRN-5)."""
