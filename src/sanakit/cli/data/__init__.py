"""`sanakit data`: one file a verb, and the group that joins them."""
