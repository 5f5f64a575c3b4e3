"""Built-in policy plugins."""
