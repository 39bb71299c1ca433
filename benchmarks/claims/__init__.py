"""Small, honest experiments on what the paper claims; docs/claims.md tells what came out."""
