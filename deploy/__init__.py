"""A trained network at work and on its way out: prediction, export, INT8."""
