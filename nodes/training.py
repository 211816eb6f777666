"""Training a slider in the graph, on the model that is wired in."""

from comfy.model_management import InterruptProcessingException
from comfy_api.latest import io

from ..comfy_host.latents import fit_latent, to_model_scale
from ..comfy_host.text_encoders import encode_prompts
from ..sliders.stack import Stack
from ..training.pairs.image_sets import ImagePairs
from ..training.recipe import VISUAL_METHODS, Concept, EncoderRecipe, Recipe, TextualRecipe, VisualRecipe
from ..training.run import RunOptions, Trained, train_text_encoder, train_textual, train_visual
from ..training.visual_samples import encode_sets
from .resume_notes import fingerprint, node_id_of, note_stopped
from .run_progress import told, watch_training
from .sockets import ImagePairsSocket, SliderConcept, Sliders
from .training_inputs import (
    checkpoint_inputs,
    keeping_inputs,
    layer_inputs,
    range_inputs,
    recipe_input,
    slider_inputs,
)


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
                *slider_inputs(steps=400),
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
                *range_inputs(),
                io.Float.Input(
                    "on_policy_rollouts",
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
                    "preserve_in_target",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Ask for the target with every held phrase as well, so that what they name stays at even "
                    "odds. Off is the published way. Without phrases it changes nothing.",
                ),
                *layer_inputs(),
                *keeping_inputs(),
                io.Int.Input(
                    "phrases_per_sigma",
                    default=2,
                    min=0,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="How many of the held phrases are asked about at one noise level. Where there are more "
                    "they take turns, and a step costs the same with any number of them. 0: all every time.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Shows the preview strip in full; it needs room beside "
                    "the model. Without it the preview is made from the latents.",
                ),
                recipe_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs) -> str:
        return fingerprint(name, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concept: tuple[Concept, ...],
        latent,
        name: str,
        vae=None,
        checkpoint_every: int = 0,
        clip_vision=None,
        recipe: Recipe | None = None,
        **settings,
    ) -> io.NodeOutput:
        if recipe is None:
            recipe = TextualRecipe(concepts=concept, **settings)
        must_be(TextualRecipe, recipe)
        conditionings = encode_prompts(clip, recipe.prompts())
        run_options = watch_training(model, recipe, vae, checkpoint_every, clip_vision, node_id_of(cls))
        trained = train_textual(model, conditionings, recipe, fit_latent(model, latent), called(name), run_options)
        return handed_on(trained, recipe, name, cls, run_options)


class TrainVisualSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersTrainVisualSlider",
            display_name="Train Visual Slider",
            category="sliders/training",
            search_aliases=["train lora", "image slider", "concept slider", "image pairs"],
            description="Trains a slider on what pairs of pictures differ in, in place. Cancelling keeps "
            "what has been trained so far.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                io.Vae.Input("vae", tooltip="Encodes the pictures, and shows the preview strip."),
                ImagePairsSocket.Input("pairs"),
                io.String.Input("less", default="", tooltip="Label of the negative end, for the slider's file."),
                io.String.Input("more", default="", tooltip="Label of the positive end."),
                io.Combo.Input(
                    "method",
                    options=list(VISUAL_METHODS),
                    default="ADDifT",
                    tooltip="ADDifT: the frozen model at one picture teaches the slider at the other; it learns what "
                    "the pictures differ in alone, and reaches less far. noise: the published loss, each picture at "
                    "its strength; reaches far, and also learns what the model gets wrong in all of them.",
                ),
                *slider_inputs(steps=150),
                *range_inputs(),
                *layer_inputs(),
                *keeping_inputs(),
                recipe_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs) -> str:
        return fingerprint(name, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        pairs: ImagePairs,
        name: str,
        checkpoint_every: int = 0,
        clip_vision=None,
        recipe: Recipe | None = None,
        **settings,
    ) -> io.NodeOutput:
        if recipe is None:
            recipe = VisualRecipe(sets=len(pairs), **settings)
        must_be(VisualRecipe, recipe)
        conditionings = encode_prompts(clip, {one.prompt: None for one in pairs})
        sets = encode_sets(pairs, vae.encode, to_model_scale(model))
        run_options = watch_training(model, recipe, vae, checkpoint_every, clip_vision, node_id_of(cls))
        trained = train_visual(model, conditionings, recipe, sets, called(name), run_options)
        return handed_on(trained, recipe, name, cls, run_options)


class TrainTextEncoderSlider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptSlidersTrainTextEncoderSlider",
            display_name="Train Text Encoder Slider",
            category="sliders/training",
            search_aliases=["text slider", "train lora", "clip lora"],
            description="Trains a slider of the text encoder alone, in place: no diffusion model is needed, and "
            "every model that reads these encodings follows it. Apply Sliders lets it act through its CLIP input.",
            inputs=[
                io.Clip.Input("clip"),
                SliderConcept.Input("concept"),
                io.Float.Input(
                    "share",
                    default=1.0,
                    min=0.05,
                    max=10.0,
                    step=0.05,
                    tooltip="How far strength 1 moves a prompt's encoding, in parts of the way from the less end "
                    "to the more end. The concept's eta is not used.",
                ),
                *slider_inputs(steps=300),
                *layer_inputs(),
                *checkpoint_inputs(),
                recipe_input(),
            ],
            outputs=[Sliders.Output(display_name="sliders")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **inputs) -> str:
        return fingerprint(name, node_id_of(cls))

    @classmethod
    def execute(
        cls,
        clip,
        concept: tuple[Concept, ...],
        name: str,
        checkpoint_every: int = 0,
        recipe: Recipe | None = None,
        **settings,
    ) -> io.NodeOutput:
        if recipe is None:
            recipe = EncoderRecipe(concepts=concept, **settings)
        must_be(EncoderRecipe, recipe)
        run_options = watch_training(None, recipe, checkpoint_every=checkpoint_every, node_id=node_id_of(cls))
        return handed_on(train_text_encoder(clip, recipe, called(name), run_options), recipe, name, cls, run_options)


_NODES = {
    TextualRecipe: ("a textual slider", "Train Slider"),
    VisualRecipe: ("a visual slider", "Train Visual Slider"),
    EncoderRecipe: ("a slider of the text encoder", "Train Text Encoder Slider"),
}


def must_be(kind: type[Recipe], recipe: Recipe) -> None:
    """Raises ValueError, saying where it belongs, if the recipe is of another kind."""
    if not isinstance(recipe, kind):
        of, node = _NODES[type(recipe)]
        raise ValueError(f"{_NODES[kind][1]}: the recipe is of {of}; wire it into {node}.")


def called(name: str) -> str:
    return name.strip() or "slider"


def handed_on(
    trained: Trained | None, recipe: Recipe, name: str, node: type[io.ComfyNode], run_options: RunOptions
) -> io.NodeOutput:
    if trained is None:
        raise InterruptProcessingException()  # cancelled before there was anything to keep
    node_id = node_id_of(node)
    if trained.progress.stopped and run_options.checkpoints:  # without them a second run could not go on with it
        note_stopped(name, node_id, trained.progress.steps, recipe.steps)
    return io.NodeOutput(Stack.of(trained.slider), ui=told(trained.progress, recipe.steps, node_id))
