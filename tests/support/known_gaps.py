"""What is known not to work on some families of models: why, by check and family."""

REASONS: dict[tuple[str, str], str] = {
    ("sweeps", "SVD"): "the entries of its batch are the frames of one video, which share their strengths",
}
