"""What `kvtier route` and `kvtier epp` share: requests as they come, who may answer, refusals."""
