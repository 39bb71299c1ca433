"""Networks: a config becomes a module."""
