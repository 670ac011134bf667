"""Runs side by side: tables, figures, and a page."""

from byheart.reports.compare import compare

__all__ = ["compare"]
