"""What the parent asks a torch process to do, and what it answers: one JSON line each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import msgspec

from edgeopt.records.base import Record
from edgeopt.records.recipe import Importance, LowerResolution, MultiplyPrecision, TorchStep
from edgeopt.records.scoring import ScoreFloor
from edgeopt.records.sparsity import SparsityCurve
from edgeopt.records.trial import EdgeInput, FailureKind

WORKER_VARIABLE = "EDGEOPT_WORKER"
"""Environment variable of a torch process: its number, from 0."""


CLUSTER_STAGE = "cluster"
"""The stage of a training that a cluster lost; it isn't tried again in another form."""

AS_TRAINED = "as-trained"
"""The trained model's network before parallel branches are merged; the same as ``original`` if it has none."""

GIVEN = "given"
"""A given ``.onnx`` file as a module, as it is; the same as ``original`` before parallel branches are merged."""


class NetworkRef(Record, frozen=True, kw_only=True):
    """A network: where it started, and the file of its weights (None: as it started)."""

    source: str
    """``original``, ``AS_TRAINED``, ``GIVEN``, or the name of one of the task's students."""
    file: str | None
    input_size: tuple[int, int] | None = None
    """Height and width to which its image is shrunk first; None: as it comes."""


class TableJob(Record, frozen=True, kw_only=True, tag_field="job", tag="table"):
    """Analyse a network and score its channels."""

    network: NetworkRef
    importance: Importance
    out: str
    """File for the ``GroupTable``."""


class LowRankJob(Record, frozen=True, kw_only=True, tag_field="job", tag="low-rank"):
    """Find the factorization of each large layer of a network."""

    network: NetworkRef
    losses: tuple[float, ...]
    """Shares of a layer's output that may be lost, 0..1."""
    step: int
    """Ranks are multiples of it."""
    out: str
    """File for the ``LowRankTable``."""


class CurveJob(Record, frozen=True, kw_only=True, tag_field="job", tag="curve"):
    """Find a network's loss at several shares of zeros."""

    network: NetworkRef


class InputSizesJob(Record, frozen=True, kw_only=True, tag_field="job", tag="input-sizes"):
    """Find the sizes to which a network's image can be shrunk."""

    network: NetworkRef


class ProfileJob(Record, frozen=True, kw_only=True, tag_field="job", tag="profile"):
    """Time a network's operators in PyTorch, on the task's example inputs."""

    network: NetworkRef


class Int8Reference(Record, frozen=True, kw_only=True):
    """The int8 file that a quantization-aware training imitates."""

    sites: str
    """File of the ``FakeQuantSites``."""
    values: str
    """File of the values at each site, see ``edgeopt.graph.quantization.fake_quant``."""
    inputs: str
    expected: str
    """File for the trained network's outputs on ``inputs``, rounded like the int8 file's."""


class TrainJob(Record, frozen=True, kw_only=True, tag_field="job", tag="train"):
    """Apply torch steps to a network and keep the result."""

    parent: NetworkRef
    table: str | None
    """File of the parent's ``GroupTable``, whose importance selects the channels that stay."""
    steps: tuple[TorchStep, ...]
    fitted: NetworkRef | None = None
    """What the first step, a ``Prune`` with a fit, makes of the parent, if it was made before."""
    seed: int
    checkpoint: str
    teacher: str
    """Folder of the teacher's outputs."""
    out: str
    int8: Int8Reference | None = None
    """Needed by a ``QuantizeAware`` step."""
    careful: bool = False
    """Train in row-major memory and with half of each batch at a time: the same training has crashed before."""
    threads: int = 1
    """Of PyTorch on the processor. They change the last bits of sums, so a network is as good from any number."""
    precision: MultiplyPrecision | None = None
    """Of products, if neither the step nor the task says; None: what the device multiplies fast."""
    floor: ScoreFloor | None = None
    """The score that the network must reach; a training that cannot ends early."""
    deadline: float | None = None
    """When the time for trainings is over, in seconds since the epoch."""
    stop_file: str | None = None
    """A file that, once it exists, ends the build's time at once."""
    rank: int = 0
    """Of this process among those that train the network together; the first one writes the files."""
    ranks: int = 1
    meeting: str = ""
    """File through which they find each other."""

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width to which the network shrinks its image; None: as it comes."""
        lower = [(step.height, step.width) for step in self.steps if isinstance(step, LowerResolution)]
        return lower[-1] if lower else self.parent.input_size

    @property
    def start(self) -> NetworkRef:
        """The network to begin with."""
        return msgspec.structs.replace(self.fitted or self.parent, input_size=self.input_size)

    @property
    def open_steps(self) -> list[tuple[int, TorchStep]]:
        """The steps that are still to be done, each with its place."""
        return list(enumerate(self.steps))[0 if self.fitted is None else 1 :]

    def is_over(self) -> bool:
        """Tell whether the time of the job's build is over."""
        if self.deadline is not None and time.time() > self.deadline:
            return True
        return self.stop_file is not None and Path(self.stop_file).exists()


class ExportJob(Record, frozen=True, kw_only=True, tag_field="job", tag="export"):
    """Export a network to ONNX, and run it on the parity inputs."""

    network: NetworkRef
    exporter: str
    examples: str
    """File of the real inputs on which its files are compared with it."""
    inputs: str
    """File for these and the edge inputs that the network takes."""
    expected: str
    """File for the module's outputs on ``inputs``."""
    out: str
    max_opset: int
    max_ir: int


class SpeedJob(Record, frozen=True, kw_only=True, tag_field="job", tag="speed"):
    """Train the original for a moment, to see how fast that goes; nothing is kept."""

    seconds: float
    threads: int = 1
    precision: MultiplyPrecision = "float32"


class ProbeJob(Record, frozen=True, kw_only=True, tag_field="job", tag="probe"):
    """Export the original with the first channels of its groups, at several choices of widths."""

    exporter: str
    widths: tuple[dict[str, int], ...]
    """Group to width, for each file; groups not named keep all."""
    outs: tuple[str, ...]
    max_opset: int
    max_ir: int


class RoomJob(Record, frozen=True, kw_only=True, tag_field="job", tag="room"):
    """Find out what a Ray cluster has, and whether its nodes can run trainings; a bridge does it."""


class EpochProgress(Record, frozen=True, kw_only=True, tag_field="answer", tag="progress"):
    """A training finished an epoch."""

    epoch: int
    epochs: int
    score: float


class TableDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="table"):
    """The table is in its file."""

    seconds: float


class LowRankDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="low-rank"):
    """The table is in its file."""

    seconds: float


class CurveDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="curve"):
    """The curve."""

    curve: SparsityCurve
    seconds: float


class InputSizesDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="input-sizes"):
    """The sizes."""

    sizes: tuple[tuple[int, int], ...]
    """Height and width, the largest first."""
    reason: str = ""
    """Why others are missing; empty if none are, or if the model has no image."""


class ProfileDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="profile"):
    """Times of operators, in ns."""

    ns: dict[str, float]
    """By the name of the weight that the operator reads."""
    total_ns: float


class TrainDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="train"):
    """The network is in its file."""

    source: str
    input_size: tuple[int, int] | None
    parameters: int
    best_score: float | None
    best_epoch: int | None
    stopped: bool
    """Whether its last training ended early, because it could not reach the job's floor."""
    ended_after: int | None
    """Epochs after which its last training was cut off, because the time was over; its checkpoint is kept."""
    proof_error: float | None
    """Largest relative difference between a node and the kept part of the same node in the zero-masked parent."""
    notes: tuple[str, ...]
    seconds: float


class ExportDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="export"):
    """The file is written."""

    exporter: str
    edge_inputs: tuple[EdgeInput, ...]
    """The last batches of the job's ``inputs``."""
    rounding: dict[str, float]
    """The network's own error of rounding, by output; see ``edgeopt.export.parity.widen_tolerance``."""
    parameters: int
    merged_sums: int
    """Sums of parallel branches that are one convolution each in the file, and are not in the trained model."""
    notes: tuple[str, ...]
    seconds: float


class SpeedDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="speed"):
    """How fast training went."""

    steps_per_second: float
    gradient_cosine: float = 1.0
    """Between the gradient of one batch in the job's precision and that in float32."""
    multiplies_bfloat16: bool = False
    """Whether the processor has instructions for it."""


class ProbeDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="probe"):
    """The files are written."""

    seconds: float


class RoomDone(Record, frozen=True, kw_only=True, tag_field="answer", tag="room"):
    """What the cluster has."""

    cores: tuple[int, ...]
    """Of each node."""
    gpus: tuple[int, ...]
    """Of each node."""
    sees_code: bool
    """Whether every node has the task's own code under the same path."""


class JobFailed(Record, frozen=True, kw_only=True, tag_field="answer", tag="failed"):
    """The job failed; the process goes on."""

    stage: str
    reason: str
    trace: str | None
    kind: FailureKind | Literal["user"]
    """``user``: the user's task is at fault."""


TorchJob = TableJob | InputSizesJob | ProfileJob | LowRankJob | CurveJob | TrainJob | ExportJob | ProbeJob | SpeedJob
BridgeJob = RoomJob | TrainJob
"""What a bridge to a cluster does."""
TorchAnswer = (
    EpochProgress
    | TableDone
    | InputSizesDone
    | ProfileDone
    | LowRankDone
    | CurveDone
    | TrainDone
    | ExportDone
    | ProbeDone
    | SpeedDone
    | RoomDone
    | JobFailed
)
