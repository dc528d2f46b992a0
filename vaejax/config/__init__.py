"""The configuration: its schema, validation and command-line flag."""
