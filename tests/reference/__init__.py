"""Slow, independent re-implementations, written from the formulas."""
