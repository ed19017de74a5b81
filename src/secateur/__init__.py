"""Prune a trained PyTorch network in one cut, guided by a teacher.

The path, each step of which is one function::

    scores = score(student, batches, TeacherGuided(teacher))     # how much each weight is needed
    masks  = allocate(scores, sparsity=0.9)                      # exactly what stays
    apply_masks(student, masks)                                  # or cut(...): all three in one
    reestimate_batchnorm(student, batches)
    with keep_masks(student, optimizer, masks): ...              # train; no pruned weight comes back
    save_sparse(student, "student.safetensors", masks=masks)

or `prune` for all of it.
"""

from secateur.allocate import (
    ERK,
    NM,
    AbstractPattern,
    AbstractScope,
    Global,
    Layerwise,
    PerTensor,
    SmartRatios,
    UniformPlus,
    Unstructured,
    allocate,
)
from secateur.calibration import CalibrationRecovery, flip_and_shift, mix
from secateur.checkpoint import inspect_checkpoint, load_sparse, save_sparse, verify_checkpoint
from secateur.cutting import cut
from secateur.data import Data, DataOptions, load_data
from secateur.diagnostics import mask_overlap, split_half_overlap
from secateur.enforce import keep_masks
from secateur.errors import (
    CheckpointError,
    DataError,
    EmptiedLayerWarning,
    InvalidArgument,
    LeftDenseWarning,
    MaskError,
    MissingExtra,
    ModelError,
    RunError,
    ScoreError,
    SecateurError,
    SecateurWarning,
    TargetError,
    TrainingError,
)
from secateur.evaluate import Metrics, evaluate, reestimate_batchnorm
from secateur.losses import kd_loss
from secateur.masks import Masks, apply_masks
from secateur.models import build_model, load_weights
from secateur.pipeline import prune
from secateur.recovery import Recovery
from secateur.result import Result
from secateur.scores import (
    AbstractCriterion,
    Epsd,
    Fisher,
    GraSP,
    GuidedScores,
    Inverted,
    Lamp,
    LayerReconstruction,
    Magnitude,
    Platon,
    ProsPr,
    Random,
    ScoreInputs,
    Shuffled,
    Snip,
    SolvingScores,
    SynFlow,
    TaskGradient,
    Taylor,
    TeacherCurvature,
    TeacherGuided,
    Wanda,
    score,
)
from secateur.stages import Stage, staged_masks
from secateur.targets import select_targets
from secateur.train import Epoch, TrainState, fit

__version__ = "0.1.0"

__all__ = [
    "ERK",
    "NM",
    "AbstractCriterion",
    "AbstractPattern",
    "AbstractScope",
    "CalibrationRecovery",
    "CheckpointError",
    "Data",
    "DataError",
    "DataOptions",
    "EmptiedLayerWarning",
    "Epoch",
    "Epsd",
    "Fisher",
    "Global",
    "GraSP",
    "GuidedScores",
    "InvalidArgument",
    "Inverted",
    "Lamp",
    "LayerReconstruction",
    "Layerwise",
    "LeftDenseWarning",
    "Magnitude",
    "MaskError",
    "Masks",
    "Metrics",
    "MissingExtra",
    "ModelError",
    "PerTensor",
    "Platon",
    "ProsPr",
    "Random",
    "Recovery",
    "Result",
    "RunError",
    "ScoreError",
    "ScoreInputs",
    "SecateurError",
    "SecateurWarning",
    "Shuffled",
    "SmartRatios",
    "Snip",
    "SolvingScores",
    "Stage",
    "SynFlow",
    "TargetError",
    "TaskGradient",
    "Taylor",
    "TeacherCurvature",
    "TeacherGuided",
    "TrainState",
    "TrainingError",
    "UniformPlus",
    "Unstructured",
    "Wanda",
    "__version__",
    "allocate",
    "apply_masks",
    "build_model",
    "cut",
    "evaluate",
    "fit",
    "flip_and_shift",
    "inspect_checkpoint",
    "kd_loss",
    "keep_masks",
    "load_data",
    "load_sparse",
    "load_weights",
    "mask_overlap",
    "mix",
    "prune",
    "reestimate_batchnorm",
    "save_sparse",
    "score",
    "select_targets",
    "split_half_overlap",
    "staged_masks",
    "verify_checkpoint",
]
