"""Engines: the only rooms that import torch or vLLM."""
