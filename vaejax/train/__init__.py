"""Training: the loop, one update, its compiled programs, and recovery."""
