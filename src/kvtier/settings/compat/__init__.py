"""Reads the settings of other systems as they are, so that users can move to kvtier easily."""
