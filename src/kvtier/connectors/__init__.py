"""Connectors to engines: the only packages that import torch or vLLM."""
