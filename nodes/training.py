"""Training a slider in the graph, on the model that is wired in."""

from comfy.model_management import InterruptProcessingException
from comfy_api.latest import io

from ..sliders.stack import Stack
from ..training.layers import CHOICES
from ..training.recipe import Concept, Recipe
from ..training.textual import train_slider
from .sockets import SliderConcept, Sliders
from .watching import encode_prompts, fitted, watch_training


class SliderConceptNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersSliderConcept",
            display_name="Slider Concept",
            category="sliders/training",
            description="What a slider is to turn: prompts for its two ends, and what must stay as it is.",
            inputs=[
                io.String.Input(
                    "target",
                    default="person",
                    multiline=True,
                    tooltip="What the slider acts on. Empty: on anything.",
                ),
                io.String.Input(
                    "more",
                    default="very old person",
                    multiline=True,
                    tooltip="The target with much of the attribute: strength above 0.",
                ),
                io.String.Input(
                    "less",
                    default="very young person",
                    multiline=True,
                    tooltip="The target with little of it: strength below 0.",
                ),
                io.String.Input(
                    "hold",
                    default="",
                    multiline=True,
                    tooltip="Phrases to hold fixed, one a line, such as 'male' and 'female': the slider "
                    "learns the change they have in common.",
                ),
                io.Float.Input(
                    "eta",
                    default=4.0,
                    min=0.1,
                    max=50.0,
                    step=0.1,
                    tooltip="How far strength 1 goes: the guidance of the edit.",
                ),
            ],
            outputs=[SliderConcept.Output(display_name="concept")],
        )

    @classmethod
    def execute(cls, target: str, more: str, less: str, hold: str, eta: float) -> io.NodeOutput:
        phrases = tuple(line.strip() for line in hold.splitlines() if line.strip())
        return io.NodeOutput(Concept(target.strip(), more.strip(), less.strip(), phrases, eta))


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
                    default=20,
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
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Shows the preview strip in full; it needs room beside "
                    "the model. Without it the preview is made from the latents.",
                ),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
        )

    @classmethod
    def execute(
        cls, model, clip, concept: Concept, latent, name, from_part, to_part, vae=None, **settings
    ) -> io.NodeOutput:
        recipe = Recipe(concept, noise_range=(from_part, to_part), **settings)
        conditionings = encode_prompts(clip, recipe)
        watch = watch_training(model, recipe.steps, vae)
        trained = train_slider(model, conditionings, recipe, fitted(model, latent), name.strip() or "slider", watch)
        if trained is None:
            raise InterruptProcessingException()  # cancelled before there was anything to keep
        return io.NodeOutput(Stack.of(trained.slider))
