"""Pure folds of events into the state that everyone reads."""
