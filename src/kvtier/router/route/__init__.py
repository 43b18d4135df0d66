"""`kvtier route`: an OpenAI-compatible server in front of replicas."""
