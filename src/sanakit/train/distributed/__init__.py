"""Many processes for one run: ranks, sharded or copied networks, the loss scale, the watchdog."""
