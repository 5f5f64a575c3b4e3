"""Engine processes on one host: start, watch, adopt, reap."""
