"""States of a run on the disk, from which it can be resumed bit for bit.

checkpoints/step-00000040/tensors.safetensors    trainable parameters and the state of the optimizer
checkpoints/step-00000040/state.json             all other values, and the digests of both files
checkpoints/.saving-*                            a state that is being written, or was when the process was killed
checkpoints/.reserve                             disk space for one more state, used when the disk is full
"""

from puna.training.checkpoints.differences import check_same_run
from puna.training.checkpoints.state import State
from puna.training.checkpoints.store import CheckpointStore, is_disk_full

__all__ = ["CheckpointStore", "State", "check_same_run", "is_disk_full"]
