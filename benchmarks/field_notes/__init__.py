"""The lessons of Linum's field notes, each as an experiment with a figure, a table and a verdict."""
