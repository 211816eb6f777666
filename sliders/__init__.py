"""What a slider is, how sliders are stacked, stored, and put to work on the layers of any PyTorch model."""
