"""What the loop trains: from a batch to a loss, and how a run's parts are built and exported."""
