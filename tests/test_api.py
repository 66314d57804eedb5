"""The named endpoints, called with `gradio_client` on an app that really runs."""

import json
import re
import time
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from processes import serving


ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of `python app.py`, with no runs of its own yet."""
    root = tmp_path_factory.mktemp("app")
    with serving(root / "app.log", RLHF_RUNS=str(root / "runs"), GRADIO_TEMP_DIR=str(root / "cache")) as address:
        yield address


@pytest.fixture(scope="module")
def lab(address):
    return Client(address, verbose=False)


def state_after(lab, run, states, seconds=120):
    """The first state of a run that is none of these."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        state = lab.predict(run, api_name="/status")["state"]
        if state not in states:
            return state
        time.sleep(0.5)
    pytest.fail(f"{run} is still {state}")


def test_the_readmes_notebook_starts_watches_compares_and_asks(address, lab, few_pairs, capsys):
    section = (ROOT / "rlhf/ui/README.md").read_text().split("## From a notebook")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    assert ADDRESS in code
    # On fewer pairs, which the steps of that many learn nothing from.
    quick = f'small = {{"dataset_name": {str(few_pairs)!r}, "reward_batch_size": 8, "allow_chance_reward": True, '
    assert "small = {" in code
    names = {}
    exec(code.replace(ADDRESS, address).replace("small = {", quick), names)
    said = capsys.readouterr().out
    assert [int(step) for step in re.findall(r"^update (\d+): score", said, re.MULTILINE)] == [1, 2]
    assert re.search(r"PPO's answers score -?\d\.\d\d higher \[", said)
    assert re.search(r"^base: .+ \(score -?\d", said, re.MULTILINE)
    run = names["run"]
    status = lab.predict(run, api_name="/status")
    assert status["state"] == "finished" and "pid" not in status
    assert {name: stage["step"] for name, stage in status["stages"].items()} == {"reward": 20, "ppo": 2}
    assert [found["id"] for found in lab.predict(api_name="/runs")] == ["example", "example-smollm2", run]


def test_the_same_seed_gives_the_same_answers(lab):
    asked = [lab.predict("example", "How do I clean an oven?", seed, api_name="/chat") for seed in (1, 1, 2)]
    assert asked[0] == asked[1] != asked[2]
    assert set(asked[0]) == {"base", "ppo"} and set(asked[0]["ppo"]) == {"text", "score"}


def test_a_second_run_waits_and_a_run_can_be_stopped(lab, few_pairs):
    settings = {"max_steps": 2000, "seed": 4, "dataset_name": str(few_pairs)}
    run = lab.predict("reward", json.dumps(settings), api_name="/start")
    second = lab.predict("reward", "{}", api_name="/start")
    assert lab.predict(second, api_name="/status")["state"] == "waiting"
    assert lab.predict(second, api_name="/stop") == "stopped"
    assert state_after(lab, run, ("queued",)) == "running"
    assert lab.predict(run, api_name="/stop") == "stopping"
    assert state_after(lab, run, ("running", "stopping")) == "stopped"


@pytest.mark.parametrize(
    ("endpoint", "given", "message"),
    [
        ("/start", ("sing",), "kind must be one of demo, reward, ppo, dpo, sweep, not 'sing'."),
        ("/start", ("demo", "{"), "settings_json must be a JSON object"),
        ("/start", ("demo", '{"kl_coef": "abc"}'), "kl_coef must be a number"),
        ("/start", ("demo", '{"kl_cof": 1}'), "kl_cof is not a setting here"),
        ("/start", ("demo", '{"output_dir": "/tmp/x"}'), "output_dir cannot be set from here"),
        ("/start", ("ppo", '{"reward_model_path": "../.."}'), "PPO needs a reward model"),
        ("/compare", ([],), "Choose a trained model"),
        ("/compare", (["example"], ["Just one?"]), "One question compares nothing"),
        ("/status", ("../..",), "There is no such run"),
        ("/metrics", ("example", -1), "after must be a whole number"),
        ("/stop", ("reward-20260101-000000-0000",), "There is no such run"),
        ("/annotate", ("example", "Mine"), "The example runs stay as they are."),
        ("/delete", ("example", True), "The example runs stay as they are."),
        ("/chat", ("example", "  "), "Please write a question first."),
        ("/chat", ("example", "Why?", "x"), "seed must be a whole number"),
    ],
)
def test_mistakes_are_answered_with_the_pages_sentences(lab, endpoint, given, message):
    with pytest.raises(AppError, match=re.escape(message)):
        lab.predict(*given, api_name=endpoint)


def test_nothing_but_the_named_endpoints_is_offered(lab):
    names = ("start", "compare", "status", "metrics", "stop", "resume", "annotate", "delete", "runs", "scores", "chat")
    offered = {f"/{name}" for name in names}
    assert set(lab.view_api(return_format="dict", print_info=False)["named_endpoints"]) == offered
