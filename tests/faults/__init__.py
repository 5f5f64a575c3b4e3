"""What breaks on purpose: databases that are stopped, disks that fail."""
