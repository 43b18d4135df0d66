"""What Kubernetes knows of the fleet: pods, pools and objectives, followed through its API."""
