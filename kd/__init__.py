"""The distillation library: losses, distiller, cache, metrics, checkpoints. Imports nothing from the scripts."""
