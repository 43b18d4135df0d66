"""Conversion of other systems' trees to kvtier's shared format and back."""
