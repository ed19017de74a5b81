"""What `secateur` hands on under its own name, imported in one place."""

from secateur.allocate import (
    AbstractScope as AbstractScope,
)
from secateur.allocate import (
    Global as Global,
)
from secateur.allocate import (
    Layerwise as Layerwise,
)
from secateur.allocate import (
    Unstructured as Unstructured,
)
from secateur.allocate import (
    allocate as allocate,
)
from secateur.checkpoint import (
    inspect_checkpoint as inspect_checkpoint,
)
from secateur.checkpoint import (
    load_sparse as load_sparse,
)
from secateur.checkpoint import (
    save_sparse as save_sparse,
)
from secateur.checkpoint import (
    verify_checkpoint as verify_checkpoint,
)
from secateur.data import (
    Data as Data,
)
from secateur.data import (
    DataOptions as DataOptions,
)
from secateur.data import (
    load_data as load_data,
)
from secateur.diagnostics import (
    mask_overlap as mask_overlap,
)
from secateur.diagnostics import (
    split_half_overlap as split_half_overlap,
)
from secateur.enforce import (
    keep_masks as keep_masks,
)
from secateur.errors import (
    CheckpointError as CheckpointError,
)
from secateur.errors import (
    CompileError as CompileError,
)
from secateur.errors import (
    DataError as DataError,
)
from secateur.errors import (
    EmptiedLayerWarning as EmptiedLayerWarning,
)
from secateur.errors import (
    InvalidArgument as InvalidArgument,
)
from secateur.errors import (
    MaskError as MaskError,
)
from secateur.errors import (
    MissingExtra as MissingExtra,
)
from secateur.errors import (
    ModelError as ModelError,
)
from secateur.errors import (
    PlanError as PlanError,
)
from secateur.errors import (
    RunError as RunError,
)
from secateur.errors import (
    ScoreError as ScoreError,
)
from secateur.errors import (
    SecateurError as SecateurError,
)
from secateur.errors import (
    SecateurWarning as SecateurWarning,
)
from secateur.errors import (
    SlowEngineWarning as SlowEngineWarning,
)
from secateur.errors import (
    TargetError as TargetError,
)
from secateur.errors import (
    TrainingError as TrainingError,
)
from secateur.evaluate import (
    Metrics as Metrics,
)
from secateur.evaluate import (
    evaluate as evaluate,
)
from secateur.evaluate import (
    reestimate_batchnorm as reestimate_batchnorm,
)
from secateur.losses import (
    kd_loss as kd_loss,
)
from secateur.masks import (
    Masks as Masks,
)
from secateur.masks import (
    apply_masks as apply_masks,
)
from secateur.models import (
    build_model as build_model,
)
from secateur.models import (
    load_weights as load_weights,
)
from secateur.pipeline import (
    cut as cut,
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
)
from secateur.scores import (
    GuidedScores as GuidedScores,
)
from secateur.scores import (
    Magnitude as Magnitude,
)
from secateur.scores import (
    Random as Random,
)
from secateur.scores import (
    ScoreInputs as ScoreInputs,
)
from secateur.scores import (
    TaskGradient as TaskGradient,
)
from secateur.scores import (
    TeacherGuided as TeacherGuided,
)
from secateur.scores import (
    score as score,
)
from secateur.targets import (
    select_targets as select_targets,
)
from secateur.train import (
    Epoch as Epoch,
)
from secateur.train import (
    TrainState as TrainState,
)
from secateur.train import (
    fit as fit,
)
