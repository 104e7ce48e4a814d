"""Many runs: strategies compared on the same unseen networks."""
