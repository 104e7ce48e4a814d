"""What an architecture is: specs, spaces of specs, graphs. Host side, numpy; jraph makes the GraphsTuples."""
