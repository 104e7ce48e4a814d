"""From a trained network to integers: what its layers see, calibration, integer arithmetic."""
