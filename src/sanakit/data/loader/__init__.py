"""Built shards become batches: from any place, for any workers and ranks, in one order."""
