"""What people choose in Feedback and in Chat: whose store it goes to, and how their browsers are answered.

Browsers ask through `server_functions`, outside Gradio's queue, and send a choice again until it is acknowledged; it
then is on disk. A person is the mark of the browser's secret, which no other knows.
"""

from collections.abc import Callable, Sequence

from rlhf.config import EVERYDAY, BadInput, FeedbackArguments, build
from rlhf.feedback.desk import Desk, desk, store_of
from rlhf.launch import limits
from rlhf.launch.start import DATA
from rlhf.runs.directory import Run, find_run
from rlhf.ui import FOREIGN, voices


def desk_of(run: Run) -> Desk:
    """Where people are asked about the answers of the model that a run started from, to the prompts of its data."""
    settings, model = run.policy_settings(), run.base_model()
    data = str(settings.get("dataset_name") or EVERYDAY)
    read = {name: settings[name] for name in (*DATA, "max_prompt_length", "response_length") if settings.get(name)}
    named = {"store": str(store_of(model, data)), "model_name_or_path": model, "dataset_name": data}
    return desk(build(FeedbackArguments, read | named), lambda name: voices.base_of(name)[:2])


def trained_from(run: Run) -> list[Run]:
    """The runs with a model that started from the same base as this one's: the shown run first."""
    own = [run] if run.model("policy") else []
    return [*own, *voices.siblings(run).values()]


def desk_between(run: Run, names: Sequence[str]) -> Desk:
    """Where people are asked about the answers of two models: "base", or ids of runs of `trained_from`.

    Raises:
        BadInput: one of them is gone.
    """
    trained = {each.id: each for each in trained_from(run)}
    if set(names) - {"base", *trained}:
        raise BadInput("One of these models is gone; choose again whose answers you want.")
    others = {
        name: (lambda name=name: (voices.base_voice(run) if name == "base" else voices.ppo_voice(trained[name])).model)
        for name in names
    }
    return desk(desk_of(run).args, lambda name: voices.base_of(name)[:2], others)


def answered(request: dict, act: Callable[[Run, Desk, str], dict]) -> dict:
    """Do something for a person, {"visitor": the browser's secret}, at the desk of the run {"run": its id}.

    Returns what came of it; {"refused": ...} says why nothing was done, {"again": ...} what is in the way of doing it.
    """
    try:
        run, person = find_run(str(request["run"])), limits.mark(str(request["visitor"]))
        if not person:
            raise BadInput("Your browser keeps no name for you: allow this page to store data, and reload it.")
        return act(run, desk_of(run), person)
    except BadInput as error:
        return {"refused": str(error)}
    except OSError as error:
        return {"again": f"Nothing can be written on the server ({error.strerror}); free some disk space there."}
    except FOREIGN:
        return {"refused": "The page asked for something that does not exist; please reload it."}
