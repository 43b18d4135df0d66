"""`kvtier route`: an OpenAI-compatible HTTP server in front of replicas."""
