"""`sanakit eval`: one command a family of figures."""
