"""The commands, a module each; adding one is adding a file (see `cli/command.py`)."""
