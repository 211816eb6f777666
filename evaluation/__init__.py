"""What sliders do, measured: scores of images, sweeps over strengths, tables and plots."""
