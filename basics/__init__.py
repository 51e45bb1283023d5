"""What every room stands on: errors, files, devices, processes, batches, grids. Knows nothing of the others."""
