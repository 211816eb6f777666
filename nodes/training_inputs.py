"""Inputs that the training nodes have in common."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.layer_choice import CHOICES
from ..training.recipe import MEMORY
from .sockets import SliderRecipe


def slider_inputs(steps: int) -> list[io.Input]:
    """Return the inputs that say what kind of slider to train, and how long. steps: the default."""
    return [
        io.String.Input("name", default="my slider", tooltip="The slider's name."),
        io.Int.Input("steps", default=steps, min=1, max=100_000, tooltip="Training steps."),
        io.Int.Input("rank", default=4, min=1, max=128, tooltip="Rank of the slider; 4 is the published one."),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=1.0,
            step=1e-5,
            round=False,
            tooltip="Learning rate of AdamW, the same for all layers. 0: automatic, in units of each layer's "
            "weights. Published: 2e-4 for 1000 steps.",
        ),
        io.Combo.Input(
            "layers",
            options=list(CHOICES),
            default=CHOICES[0],
            tooltip="Which layers the slider changes. By role: from 'all but cross-attention' to 'all'. By the names "
            "of the published trainer, with its layers: from 'noxattn', its default, to 'noxattn-hspace-last'.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**32 - 1,
            control_after_generate=io.ControlAfterGenerate.fixed,
            tooltip="Of noise, initial weights and random choices: the same seed gives the same slider.",
        ),
        io.Boolean.Input(
            "both_signs",
            default=True,
            advanced=True,
            tooltip="Train strength -1 towards the other end as well, not strength 1 alone.",
        ),
    ]


def rollout_inputs() -> list[io.Input]:
    """Return the inputs that say how training latents are sampled."""
    return [
        io.Float.Input(
            "guidance",
            default=3.0,
            min=0.0,
            max=30.0,
            step=0.1,
            advanced=True,
            tooltip="Classifier-free guidance scale of the rollouts: the sampling runs that training "
            "latents are taken from.",
        ),
        io.Int.Input(
            "rollout_steps",
            default=10,
            min=2,
            max=1000,
            advanced=True,
            tooltip="Steps of each rollout.",
        ),
    ]


def range_inputs() -> list[io.Input]:
    """Return the inputs that say which part of sampling is trained on."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Where the part of sampling that is trained on begins: 0 is the first step, 1 the last. The "
            "slider acts from there on; its file names it as its gate.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Where the part of sampling that is trained on ends, and the slider's gate with it.",
        ),
    ]


def layer_inputs() -> list[io.Input]:
    """Return the inputs that say which of the chosen layers are trained, and how."""
    return [
        io.Float.Input(
            "alpha",
            default=0.0,
            min=0.0,
            max=128.0,
            step=0.5,
            optional=True,
            advanced=True,
            tooltip="The slider is trained at a scale of alpha / rank, as LoRA files are. 0: a scale of 1. "
            "Published: 1 at rank 4. With a learning rate by hand, a smaller scale learns more slowly.",
        ),
        io.Boolean.Input(
            "convolutions",
            default=True,
            optional=True,
            advanced=True,
            tooltip="Train convolutions too, not linear layers alone.",
        ),
        io.String.Input(
            "pattern",
            default="",
            optional=True,
            advanced=True,
            tooltip="For experts: a regular expression; only layers in whose path it is found are trained, such as "
            "'middle_block' or 'blocks\\.(1[0-9])\\.'.",
        ),
        io.Boolean.Input(
            "full_rank",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Train full-rank differences of weights instead of low-rank ones, for comparison. Takes much "
            "memory.",
        ),
    ]


def run_inputs() -> list[io.Input]:
    """Return the inputs that say when a run stops early, how it is kept on disk, and in how much memory it runs."""
    return [
        io.Int.Input(
            "patience",
            default=0,
            min=0,
            max=100,
            optional=True,
            advanced=True,
            tooltip="Early stop: ends training when the slider's effect has not grown for this many evaluations, one "
            "every 20 steps. 3 is a good number; 0 trains all steps.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="The early stop measures the effect by CLIP's embeddings of decoded images, which takes a VAE as "
            "well, and time. Without it the effect is measured on latents. Not used with a patience of 0.",
        ),
        *checkpoint_inputs(),
    ]


def recipe_input() -> io.Input:
    """Return the input for a recipe in place of all settings."""
    return SliderRecipe.Input(
        "recipe",
        optional=True,
        tooltip="From Load Recipe: replaces every setting of this node.",
    )


def checkpoint_inputs() -> list[io.Input]:
    """Return the inputs that say how a run is kept on disk, and in how much memory it runs."""
    return [
        io.Int.Input(
            "checkpoint_every",
            default=100,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Steps between checkpoints; 0 for none. The same training, queued again after a cancel or a "
            "crash, resumes from its last one. They are in the output folder, under slider_checkpoints.",
        ),
        io.Combo.Input(
            "memory",
            options=list(MEMORY),
            default=MEMORY[0],
            optional=True,
            advanced=True,
            tooltip="auto: keeps activations, and saves memory only when it runs out. gradient checkpointing: much "
            "less memory and about a third more time from the start. The slider is the same.",
        ),
    ]
