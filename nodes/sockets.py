"""The socket types that the pack adds to ComfyUI's."""

from comfy_api.latest import io

Sliders = io.Custom("SLIDERS")  # a stack of sliders: sliders.stack.Stack
SliderConcept = io.Custom("SLIDER_CONCEPT")  # what to train: a tuple of training.concept.Concept
ImagePairsSocket = io.Custom("SLIDER_PAIRS")  # images to learn from: training.pairs.image_sets.ImagePairs
SliderRecipe = io.Custom("SLIDER_RECIPE")  # how to train: a training.recipe.Recipe
InversionSocket = io.Custom("SLIDER_INVERSION")  # inverted images: inversion.inversion.Inversion
PromptDirectionsSocket = io.Custom("PROMPT_DIRECTIONS")  # discovery.prompt_directions.PromptDirections
