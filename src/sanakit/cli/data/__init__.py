"""`sanakit data`: pictures become training sets; a file for each verb."""
