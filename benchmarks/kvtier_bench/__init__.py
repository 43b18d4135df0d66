"""Measuring: rows of name, value, unit, reference, ratio, target and met."""
