"""Inputs of the node that finds sliders."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfy_host.seeded_sampling import SCHEDULERS
from ..discovery.recipe import AXES, EMBEDDINGS, DiscoveryRecipe

DEFAULT_NAME = "direction"
WORDS = (
    "old, young, child, man, woman, smiling, frowning, laughing, sad, angry, beautiful, bearded, bald, long hair, "
    "short hair, black hair, white hair, blonde hair, red hair, curly hair, glasses, hat, dark skin, pale skin, "
    "wide face, narrow face, large eyes, small eyes, night, day, noon, sunset, dark, bright, colourful, "
    "black and white, blurred, sharp, photograph, painting, drawing, sketch, ink, pastel, flat colours, indoors, "
    "outdoors, close-up, far away, one, many, rich, poor, old-fashioned, modern, clean, dirty, summer, winter, snow, "
    "rain, forest, city, sea"
)


def what_inputs() -> list[io.Input]:
    """Return the inputs that say what is looked at, and how much of it."""
    defaults = DiscoveryRecipe(prompts=("x",))
    return [
        io.String.Input(
            "prompts",
            default="portrait of a person",
            multiline=True,
            tooltip="What to look at, one prompt a line: one that leaves open what is to be found, or several "
            "expansions of it.",
        ),
        io.Int.Input(
            "directions",
            default=8,
            min=0,
            max=256,
            tooltip="How many sliders. 0: as many as the variance suggests. Published: 40, where gains saturate.",
        ),
        io.Int.Input(
            "samples",
            default=defaults.samples,
            min=2,
            max=100_000,
            tooltip="Images sampled to find directions on, of all prompts together. They are kept in the output "
            "folder, under slider_samples, and used again. Published: 5,000.",
        ),
        io.String.Input("name", default=DEFAULT_NAME, tooltip="The sliders' name; a number and a word are added."),
        io.Int.Input("steps", default=200, min=1, max=100_000, tooltip="Training steps; each trains all directions."),
        *sample_inputs(defaults.guidance, defaults.scheduler),
        io.Int.Input(
            "seed", default=0, min=0, max=2**32 - 1, control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Of samples, initial weights and random choices: the same seed finds the same sliders.",
        ),
        io.String.Input(
            "words",
            default=WORDS,
            multiline=True,
            optional=True,
            tooltip="Words to name directions by, separated by commas. Takes a clip_vision that belongs with the "
            "text encoder. Empty: numbers.",
        ),
        io.String.Input(
            "leave_out",
            default="",
            multiline=True,
            optional=True,
            tooltip="What no direction may be about, one text a line, such as 'photograph' and 'ink sketch' where "
            "all directions are of style. Takes a clip_vision that belongs with the text encoder.",
        ),
    ]  # fmt: skip


def sample_inputs(guidance: float, scheduler: str) -> list[io.Input]:
    """Return the inputs that say how the samples are made that are looked at."""
    return [
        io.Int.Input(
            "sampling_steps", default=20, min=1, max=1000, tooltip="Steps of each sample; 1 to 8 for few-step models."
        ),
        io.Float.Input(
            "guidance",
            default=guidance,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="Classifier-free guidance scale of the samples; 1 for few-step models and such as have none.",
        ),
        io.Combo.Input(
            "scheduler",
            options=list(SCHEDULERS),
            default=scheduler,
            tooltip="Of the samples, as in KSampler; sgm_uniform for most few-step models.",
        ),
    ]


def how_inputs() -> list[io.Input]:
    """Return the inputs that say how directions are trained."""
    defaults = DiscoveryRecipe(prompts=("x",))
    return [
        io.Combo.Input(
            "embedding",
            options=list(EMBEDDINGS),
            default=EMBEDDINGS[0],
            optional=True,
            advanced=True,
            tooltip="How changes are embedded in training. head: by a small network fitted on the samples, fast. "
            "decoder: by the VAE's decoder and the encoder themselves, exact, slower, and it takes memory.",
        ),
        io.Int.Input(
            "rank", default=1, min=1, max=128, optional=True, advanced=True,
            tooltip="Rank of each slider; 1 is the published one.",
        ),
        io.Float.Input(
            "spread",
            default=defaults.spread,
            min=0.05,
            max=10.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How far strength 1 moves what is sampled, in standard deviations of what the model varies by "
            "itself.",
        ),
        io.Boolean.Input(
            "both_signs", default=True, optional=True, advanced=True,
            tooltip="Train strength -1 along the opposite direction as well.",
        ),
        io.Combo.Input(
            "axes", options=list(AXES), default=AXES[0], optional=True, advanced=True,
            tooltip="independent: directions along which images vary regardless of each other, so that each is of "
            "one thing where the samples tell. principal: the widest, as published; each may mix several.",
        ),
    ]  # fmt: skip
