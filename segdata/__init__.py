"""Where data lie and how they become tensors: layouts, reading, transforms, archives, checks, statistics, caches."""
