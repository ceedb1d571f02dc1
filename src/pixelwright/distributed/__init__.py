"""Several processes: who computes what, how weights are sharded, checkpoints that all of them write."""
