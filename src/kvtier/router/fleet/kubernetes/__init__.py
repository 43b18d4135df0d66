"""Discovery in Kubernetes: the pods of a pool or selector, and the objectives of a pool."""
