"""The networks that are not the student: architectures, their weights, what they cost."""
