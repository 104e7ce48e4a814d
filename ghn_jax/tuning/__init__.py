"""What comes after prediction: one network made ready to be used, at few bits."""
