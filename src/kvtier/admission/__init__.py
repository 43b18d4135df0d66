"""Admission policies, which decide whether a block may enter a tier; one policy per module."""
