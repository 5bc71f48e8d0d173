"""TensorBoard and Weights & Biases, through Accelerate: what a run is called there, and that a resumed one goes on."""

from __future__ import annotations

import importlib.util
import json
import re
import uuid
from pathlib import Path
from typing import Any

from fe_adapter.errors import InputError
from fe_adapter.files import atomic_write
from fe_adapter.train.config import TrainConfig

WANDB_ID_FILE = "wandb-id.txt"


def check_tracker(tracker: str | None) -> None:
    """Raise `InputError` where a tracker is not installed."""
    spec = importlib.util.find_spec(tracker) if tracker is not None else None
    # a folder such as wandb/, which its runs leave behind, is found as a package without a file of its own
    if tracker is not None and (spec is None or spec.origin is None):
        raise InputError(f"tracker={tracker!r} needs {tracker}; pip install {tracker} or use None")


def start_tracker(accelerator: Any, config: TrainConfig, out: Path, step: int, settings: dict[str, Any]) -> None:
    """Begin to track the run in the folder ``out``, or go on with it from ``step``; ``settings`` are JSON values.

    Raises:
        InputError: the tracker does not start, such as W&B without a login; or W&B's file in ``out`` is damaged.
    """
    if config.tracker is None or not accelerator.is_main_process:
        return
    if config.tracker == "wandb":
        # the steps that a resumed run makes again are there already, and W&B passes over them
        options = {"id": _wandb_id(out, is_new=step == 0), "resume": "allow", "dir": str(out)}
        options["name"] = config.run_name or out.resolve().name
        try:
            accelerator.init_trackers(config.project, settings, {"wandb": options})
        except Exception as error:  # of W&B's many: no login, no network, a name that it does not take
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"tracker='wandb' does not start: {reason}") from error
        return
    # here the name is the folder's in `out`, and the steps that a resumed run makes again replace those of before
    accelerator.init_trackers("tensorboard", None, {"tensorboard": {"purge_step": step}})
    shown = json.dumps(settings, indent=2).replace("\n", "\n    ")  # indented, it is code in Markdown
    accelerator.log({"config": f"    {shown}"}, step=step)


def _wandb_id(out: Path, is_new: bool) -> str:
    """By what W&B knows the run in ``out``; a new run gets a new one."""
    file = out / WANDB_ID_FILE
    if is_new or not file.exists():
        run_id = uuid.uuid4().hex[:12]
        with atomic_write(file) as content:
            content.write(f"{run_id}\n".encode())
        return run_id
    run_id = file.read_text(errors="replace").strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", run_id):
        raise InputError(f"{file} holds no id of a W&B run; remove it, and the run goes on as a new one there")
    return run_id
