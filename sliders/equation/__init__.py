"""y = f(x) + B (s * A x): by hooks, by merged weights, and by parameters that are swapped."""
