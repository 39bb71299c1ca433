"""Small experiments on what the paper claims; docs/research/claims.md tells what came out."""
