"""Widgets of our own, and how they are kept, filled and refreshed."""
