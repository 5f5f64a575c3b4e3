"""Contract suites that a plugin's own tests inherit: one module per kind of plugin."""
