"""Latents of a whole collection, in tars or Parquet files that other trainers read without vaejax."""
