"""Services: they read head, decide, append, and carry decisions out. None edits a projection."""
