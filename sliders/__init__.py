"""Sliders: what they are, how they are stacked, stored and put to work.

Everything here but `runtime` is plain PyTorch and knows nothing of the host.
"""
