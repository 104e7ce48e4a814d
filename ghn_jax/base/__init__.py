"""What every room uses: errors, files, the command line, collectives, locks. Knows nothing of networks."""
