"""Data sets: their records, and the episodes and prompts that are made of them."""
