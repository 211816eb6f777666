"""Training a slider in the graph, on the model that is wired in."""

from comfy.model_management import InterruptProcessingException
from comfy_api.latest import io

from ..sliders.stack import Stack
from ..training.layers import CHOICES
from ..training.recipe import Concept, TextualRecipe
from ..training.run import train_slider
from .sockets import SliderConcept, Sliders
from .watching import checkpoint_file, encode_prompts, fitted, told, watch_training


class TrainSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersTrainSlider",
            display_name="Train Slider",
            category="sliders/training",
            search_aliases=["train lora", "train slider", "concept slider"],
            description="Trains a slider on the model in place; the model stays as it is. Cancelling keeps what "
            "has been trained so far.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                SliderConcept.Input("concept"),
                io.Latent.Input(
                    "latent",
                    tooltip="An empty latent of the size to train at. Its batch size is the "
                    "number of pictures a step.",
                ),
                io.String.Input("name", default="my slider", tooltip="The slider's name."),
                io.Int.Input("steps", default=400, min=1, max=100_000, tooltip="Training steps."),
                io.Int.Input(
                    "rank", default=4, min=1, max=128, tooltip="Rank of the slider; 4 is the published one."
                ),
                io.Float.Input(
                    "learning_rate",
                    default=5e-4,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Step size of AdamW. Published: 2e-4 for 1000 steps.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(CHOICES),
                    default=CHOICES[0],
                    tooltip="Which layers the slider changes.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=True,
                    tooltip="Of noise, initial weights and choices: the same seed gives the same slider.",
                ),
                io.Boolean.Input(
                    "both_signs",
                    default=True,
                    advanced=True,
                    tooltip="Train strength -1 towards the other end as well, not strength 1 alone.",
                ),
                io.Float.Input(
                    "guidance",
                    default=3.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Classifier-free guidance of the pictures it is trained on.",
                ),
                io.Int.Input(
                    "rollout_steps",
                    default=10,
                    min=2,
                    max=1000,
                    advanced=True,
                    tooltip="Noise levels of those pictures' sampling.",
                ),
                io.Float.Input(
                    "from_part",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Train from this fraction of sampling on.",
                ),
                io.Float.Input(
                    "to_part",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Train up to this fraction of sampling.",
                ),
                io.Float.Input(
                    "own_rollouts",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Share of those pictures that are made with the slider on, at its present state. There "
                    "it learns what to hold in pictures it has changed itself. 0 is the published way.",
                ),
                io.Boolean.Input(
                    "held_target",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Ask for the target with every held phrase as well, so that what they name stays at even "
                    "odds. Off is the published way. Without phrases it changes nothing.",
                ),
                *layer_inputs(),
                *keeping_inputs(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Shows the preview strip in full; it needs room beside "
                    "the model. Without it the preview is made from the latents.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concept: tuple[Concept, ...],
        latent,
        name: str,
        from_part: float,
        to_part: float,
        vae=None,
        checkpoint_every: int = 0,
        **settings,
    ) -> io.NodeOutput:
        recipe = TextualRecipe(concepts=concept, noise_range=(from_part, to_part), **settings)
        name = name.strip() or "slider"
        conditionings = encode_prompts(clip, recipe.prompts())
        file = checkpoint_file(name, recipe) if checkpoint_every else None
        watch = watch_training(model, recipe.steps, vae, file, checkpoint_every)
        trained = train_slider(model, conditionings, recipe, fitted(model, latent), name, watch)
        if trained is None:
            raise InterruptProcessingException()  # cancelled before there was anything to keep
        return io.NodeOutput(Stack.of(trained.slider), ui=told(trained.progress, recipe.steps, cls.hidden.unique_id))


def layer_inputs() -> list[io.Input]:
    """Which of the chosen layers are trained, and how."""
    return [
        io.Float.Input(
            "alpha",
            default=0.0,
            min=0.0,
            max=128.0,
            step=0.5,
            optional=True,
            advanced=True,
            tooltip="The slider's scale while it learns is alpha / rank, as in LoRA training. 0: a scale of 1. "
            "Published: 1 at rank 4. A smaller scale learns more slowly.",
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
            tooltip="Train whole differences of weights instead of low-rank ones, for comparison. Takes much memory.",
        ),
    ]


def keeping_inputs() -> list[io.Input]:
    """How a run is kept on disk."""
    return [
        io.Int.Input(
            "checkpoint_every",
            default=100,
            min=0,
            max=100_000,
            optional=True,
            advanced=True,
            tooltip="Steps between checkpoints; 0 for none. The same training, queued again after a cancel or a "
            "crash, goes on from its last one. They are in the output folder, under slider_checkpoints.",
        ),
    ]
