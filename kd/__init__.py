"""Distillation: the losses, the student with its adapters, the teacher live or from its cache."""
