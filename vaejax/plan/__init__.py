"""Memory, time and throughput of a run, predicted for devices that may be absent."""
