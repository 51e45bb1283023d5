"""What `bench.py` measures: training steps, loading, validation, and the usual way of doing each to compare with."""
