"""Makes modules importable: this folder's, and the benchmarks' (for the trials of `generate`)."""
