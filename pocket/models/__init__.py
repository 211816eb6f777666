"""What the pocket model is built of: ComfyUI classes and the pack's own VAE, small, with their weights."""
