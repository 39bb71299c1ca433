"""`sanakit data`: from pictures to training shards, one file a verb."""
