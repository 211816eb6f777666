"""What `dev.py` runs in the Python of ComfyUI: `train` from a recipe without a browser, and the `demo`."""
