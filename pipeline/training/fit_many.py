"""One training from files to files, in this process or in one for each device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from cogumi.stage import Progress
from pipeline.training.fit import FitJob, fit
from pipeline.training.launch import train_together
from pipeline.training.sft import SftSettings

if TYPE_CHECKING:
    from pipeline.training.world import World

_JOB = TypeAdapter(FitJob)


def fit_on_devices(
    settings: SftSettings, job: FitJob, progress: Progress
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train on the devices that the settings name; return facts and metrics, as ``fit`` does."""
    if settings.devices.processes() == 1:
        return fit(settings, job, progress)
    arguments = {"settings": settings.model_dump(mode="json"), "job": _JOB.dump_python(job, mode="json")}
    found = train_together(
        f"{__name__}:fit_part", arguments, settings.devices, progress, logs=job.scratch / "logs"
    )
    return found["facts"], found["metrics"]


def fit_part(arguments: Any, progress: Progress, world: World) -> dict[str, Any]:
    """Do one process's part of a training; what it returns counts in the first process."""
    settings = SftSettings.model_validate(arguments["settings"])
    facts, metrics = fit(settings, _JOB.validate_python(arguments["job"]), progress, world)
    return {"facts": facts, "metrics": metrics}
