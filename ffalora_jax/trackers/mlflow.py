"""MLflow: the store that MLFLOW_TRACKING_URI names, else the folder mlruns/ where the command was started."""

from pathlib import Path
from typing import Any

from ffalora_jax.trackers import Writer, identity

EXPERIMENT, FOLDER, KNOWN_BY = "ffalora_jax", "ffalora_jax.folder", "ffalora_jax.identity"


def build(path: Path, settings: dict[str, Any]) -> Writer:
    """Makes a run of the experiment ``ffalora_jax``; a run that goes on is found again by its folder."""
    import mlflow

    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(EXPERIMENT)
    number = client.create_experiment(EXPERIMENT) if known is None else known.experiment_id
    asked = f"tags.`{KNOWN_BY}` = '{identity(path)}'"
    before = client.search_runs([number], asked, max_results=1)
    if before:
        name = before[0].info.run_id
    else:
        tags = {KNOWN_BY: identity(path), FOLDER: str(path.absolute())}
        name = client.create_run(number, tags=tags, run_name=path.name).info.run_id
        for setting, value in settings.items():
            client.log_param(name, setting, str(value)[:500])

    def log(figures: dict[str, float], rounds: int) -> None:
        for figure, value in figures.items():
            client.log_metric(name, figure, value, step=rounds)

    return Writer(log, lambda: client.set_terminated(name))
