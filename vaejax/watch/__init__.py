"""A page that shows how runs train: curves, scores, panels, verdicts, and bad steps and samples."""
