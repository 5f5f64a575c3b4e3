"""All events of the journal, a module per kind of stream; nothing lists them by hand."""
