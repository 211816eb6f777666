"""What is known not to work on some families of models: why, by check and family."""

_ADAPTER = "The adapter of prompts runs before sampling, where sliders do not act."

REASONS: dict[tuple[str, str], str] = {
    **{(check, "Anima"): _ADAPTER for check in ("acts", "namings")},
}
