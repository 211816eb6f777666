"""The nodes, by task. Each takes its inputs apart, makes one call, and wraps what comes back."""

from .applying import ApplySliders, SliderStrip
from .auditioning import AuditionSlider
from .calibrating import CalibrateSlider
from .composing import CombineSliders, GateSliders, PickSlider, ScaleSliders, SweepSliders
from .concepts import CombineConcepts, SliderConceptNode
from .converting import ConvertSlider, MergeSliders
from .crosstalk import SliderReport
from .discovering import DiscoverSliders
from .inverting import InvertImage, LoadInversion, SaveInversion
from .loading import LoadSlider, SaveSlider
from .measuring import MeasureSlider
from .pairs import ImagePairsFromFolder, ImagePairsNode
from .pocket import DrawPortrait, LoadPocketModel
from .prompt_directions import DiscoverPromptDirections, ShiftPrompt
from .recipes import LoadRecipe
from .sets import LoadSliderSet, SaveSliderSet
from .training import TrainSlider, TrainTextEncoderSlider, TrainVisualSlider

NODES = (
    LoadSlider,
    SaveSlider,
    LoadSliderSet,
    SaveSliderSet,
    ConvertSlider,
    MergeSliders,
    CombineSliders,
    ScaleSliders,
    PickSlider,
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
    DiscoverSliders,
    DiscoverPromptDirections,
    ShiftPrompt,
    LoadRecipe,
    ImagePairsNode,
    ImagePairsFromFolder,
    InvertImage,
    SaveInversion,
    LoadInversion,
    MeasureSlider,
    SliderReport,
    CalibrateSlider,
    LoadPocketModel,
    DrawPortrait,
)
