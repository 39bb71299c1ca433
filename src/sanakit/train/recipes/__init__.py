"""What the loop trains: from a batch to a loss, and the parts of a run."""
