"""Scores of answers, as published."""
