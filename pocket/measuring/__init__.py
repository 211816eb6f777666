"""How the pocket model is measured: a probe that reads attributes back, and what is made of its readings."""
