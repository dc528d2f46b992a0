"""The kinds of data sources, a file each: where photos and clips are, and how their records are read."""
