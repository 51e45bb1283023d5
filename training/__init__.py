"""One training run: its arguments, what it is built of, the loop, its state, and what it writes down."""
