"""The nodes, by task. Each takes its inputs apart, makes one call, and wraps what comes back."""

from .applying import ApplySliders, SliderStrip
from .auditioning import AuditionSlider
from .composing import CombineSliders, GateSliders, ScaleSliders, SweepSliders
from .concepts import CombineConcepts, SliderConceptNode
from .converting import ConvertSlider, MergeSliders
from .inverting import InvertImage, LoadInversion, SaveInversion
from .loading import LoadSlider, SaveSlider
from .pairs import ImagePairsFromFolder, ImagePairsNode
from .pocket import DrawPortrait, LoadPocketModel
from .recipes import LoadRecipe
from .training import TrainSlider, TrainTextEncoderSlider, TrainVisualSlider

NODES = (
    LoadSlider,
    SaveSlider,
    ConvertSlider,
    MergeSliders,
    CombineSliders,
    ScaleSliders,
    GateSliders,
    SweepSliders,
    ApplySliders,
    SliderStrip,
    SliderConceptNode,
    AuditionSlider,
    CombineConcepts,
    TrainSlider,
    TrainVisualSlider,
    TrainTextEncoderSlider,
    LoadRecipe,
    ImagePairsNode,
    ImagePairsFromFolder,
    InvertImage,
    SaveInversion,
    LoadInversion,
    LoadPocketModel,
    DrawPortrait,
)
