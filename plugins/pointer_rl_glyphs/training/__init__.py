"""Trains and measures the glyph model. Part of the source tree, not of the wheel."""
