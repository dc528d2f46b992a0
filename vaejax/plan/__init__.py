"""What a configuration needs and how fast it would train on devices that one does not have."""
