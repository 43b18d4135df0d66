"""kvtier under vLLM's OffloadingConnector."""
