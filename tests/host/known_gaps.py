"""What is known not to work on some families of models: why, by check and family."""

from concept_sliders.tests.host.families import FAMILIES

_ROWS = (
    "A layer runs with the batch elsewhere than in its first dimension, with all rows in one, or on tokens gathered "
    "from all rows, so strengths cannot differ between rows; nor can a slider train at both signs."
)
_ROTARY = "The host's fused rotary embeddings have no gradient, and its changes in place stand in the way of others."
_CACHE = "The model keeps keys and values of the prompt between evaluations, whatever the sliders do meanwhile."
_ADAPTER = "The adapter of prompts runs before sampling, where sliders do not act."

_UNUSUAL_BATCH = ("PixArt Alpha", "PixArt Sigma", "Hunyuan-DiT", "HiDream", "Cosmos", "ACE-Step")
_PLAIN_ATTENTION = ("SD", "Stable", "AuraFlow", "HiDream", "Mochi", "CogVideoX")

REASONS: dict[tuple[str, str], str] = {
    **{(check, family): _ROWS for family in _UNUSUAL_BATCH for check in ("sweeps", "trains")},
    **{
        ("trains", family): _ROTARY
        for family in FAMILIES
        if family not in _UNUSUAL_BATCH and not family.startswith(_PLAIN_ATTENTION)
    },
    **{(check, "HiDream O1"): _CACHE for check in ("loads", "gates", "trains")},
    **{(check, "Anima"): _ADAPTER for check in ("acts", "namings")},
}
