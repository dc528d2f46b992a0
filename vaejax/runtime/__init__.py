"""Devices and processes: mesh, distributed runs, preemption, watchdog, profiling."""
