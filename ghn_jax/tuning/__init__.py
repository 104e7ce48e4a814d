"""What comes after prediction: one network trained through quantization, or quantized after training."""
