"""SliderSpace (arXiv 2502.01639): sliders for what a model varies by itself, unasked."""
