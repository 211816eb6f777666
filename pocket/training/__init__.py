"""Training of the pocket models, each from nothing and resumable."""
