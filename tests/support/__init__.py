"""What tests of the core share: a loop that is stepped by hand, a clock, ids, a store with faults, scripted engines."""
