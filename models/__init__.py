"""Architectures that are not the student: wrappers of library models, and FastLiteSSNet."""
