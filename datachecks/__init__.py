"""What a data set has: counted once, judged by rules, shown on a sheet."""
