"""What `secateur` hands on under its own name, imported in one place."""

# ruff: noqa: I001  sorting would give every name a statement of its own

from secateur.allocate import (
    ERK as ERK,
    NM as NM,
    AbstractPattern as AbstractPattern,
    AbstractScope as AbstractScope,
    Global as Global,
    Layerwise as Layerwise,
    PerTensor as PerTensor,
    SmartRatios as SmartRatios,
    UniformPlus as UniformPlus,
    Unstructured as Unstructured,
    allocate as allocate,
)
from secateur.augment import FlipShift as FlipShift, mix as mix
from secateur.calibration import CalibrationRecovery as CalibrationRecovery
from secateur.checkpoint import (
    inspect_checkpoint as inspect_checkpoint,
    load_sparse as load_sparse,
    save_sparse as save_sparse,
    verify_checkpoint as verify_checkpoint,
)
from secateur.cutting import (
    cut as cut,
)
from secateur.data import (
    Data as Data,
    DataOptions as DataOptions,
    load_data as load_data,
)
from secateur.diagnostics import (
    mask_overlap as mask_overlap,
    split_half_overlap as split_half_overlap,
)
from secateur.enforce import (
    keep_masks as keep_masks,
)
from secateur.errors import (
    CheckpointError as CheckpointError,
    CompileError as CompileError,
    DataError as DataError,
    EmptiedLayerWarning as EmptiedLayerWarning,
    InvalidArgument as InvalidArgument,
    LeftDenseWarning as LeftDenseWarning,
    MaskError as MaskError,
    MissingExtra as MissingExtra,
    ModelError as ModelError,
    PlanError as PlanError,
    RunError as RunError,
    ScoreError as ScoreError,
    SecateurError as SecateurError,
    SecateurWarning as SecateurWarning,
    SlowEngineWarning as SlowEngineWarning,
    SuiteError as SuiteError,
    TargetError as TargetError,
    TrainingError as TrainingError,
)
from secateur.evaluate import (
    Metrics as Metrics,
    evaluate as evaluate,
    reestimate_batchnorm as reestimate_batchnorm,
)
from secateur.inputs import (
    Arguments as Arguments,
)
from secateur.losses import (
    kd_loss as kd_loss,
)
from secateur.masks import (
    Masks as Masks,
    apply_masks as apply_masks,
)
from secateur.models import (
    build_model as build_model,
    load_weights as load_weights,
)
from secateur.pipeline import (
    prune as prune,
)
from secateur.recovery import (
    Recovery as Recovery,
)
from secateur.result import (
    Result as Result,
)
from secateur.scores import (
    AbstractCriterion as AbstractCriterion,
    Epsd as Epsd,
    Fisher as Fisher,
    GraSP as GraSP,
    GuidedScores as GuidedScores,
    Inverted as Inverted,
    Lamp as Lamp,
    LayerReconstruction as LayerReconstruction,
    Magnitude as Magnitude,
    Platon as Platon,
    ProsPr as ProsPr,
    Random as Random,
    ScoreInputs as ScoreInputs,
    Shuffled as Shuffled,
    Snip as Snip,
    SolvingScores as SolvingScores,
    SynFlow as SynFlow,
    TaskGradient as TaskGradient,
    Taylor as Taylor,
    TeacherCurvature as TeacherCurvature,
    TeacherFisher as TeacherFisher,
    TeacherGuided as TeacherGuided,
    Wanda as Wanda,
    score as score,
)
from secateur.stages import (
    Stage as Stage,
    staged_masks as staged_masks,
)
from secateur.targets import (
    select_targets as select_targets,
)
from secateur.train import (
    Epoch as Epoch,
    TrainState as TrainState,
    fit as fit,
)
