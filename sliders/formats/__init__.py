"""Sliders from files and to files: every layout and naming in the wild."""
