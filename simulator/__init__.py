"""The real scheduler in simulated time: services and journal as they are, over modelled GPUs, engines and hosts.

Nothing here waits: the loop's time stands still until :meth:`~.loop.StepLoop.advance` lets it go on, so that two
hours of a workstation take seconds, and one seed gives the same journal every time, byte for byte.
"""
