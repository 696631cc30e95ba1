"""Models and pairs over the wire: pushed to a Hub on this machine and loaded from it, in other processes."""

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hub_server
import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from hub_clients import ROOT, WITHOUT_PACKAGE, Clients, environment, run_apart
from hub_server import TOKEN, Fault, Hub
from huggingface_hub import DatasetCard, ModelCard, get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import tiny_pipeline

from backshan_diffusers import MINI, BackToFrontPipeline, cards, hub, model_record, remote_code
from backshan_diffusers.data import load_pairs
from backshan_diffusers.pictures import save_picture
from backshan_diffusers.training.lora import add_lora, save_lora

PUSH = "import sys; from backshan_diffusers.hub import push; print(push(sys.argv[1], sys.argv[2]).oid)"
IMPATIENT = "from backshan_diffusers import hub; hub.WAITS_S = (0, 0, 0); hub.STALLED_AFTER_S = 1.0\n"
"""Before code that meets faults: the tests do not wait for as long as people do."""

FRONT = """
import sys
import numpy as np, torch
picture = pipe(*asked, generator=torch.Generator().manual_seed(0), output_type="np", **settings).images[0]
np.save(sys.argv[1], picture)
"""
"""After code that loads `pipe`: a front in the file that is named."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub") / "server", part_size=150_000) as server:
        yield server


@pytest.fixture(scope="module")
def clients(server, tmp_path_factory, drawn_backs):
    clients = Clients(server, tmp_path_factory.mktemp("clients") / "of")
    save_picture(drawn_backs[0], clients.folder / "back.png")
    yield clients
    clients.stop()


@pytest.fixture(autouse=True)
def no_faults_are_left(request):
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").faults.clear()


@pytest.fixture(scope="module")
def pushed(server, clients, tiny_folder) -> str:
    """A repository that holds the tiny pipeline."""
    clients.run(PUSH, tiny_folder, "org/tiny").checked()
    return "org/tiny"


@pytest.fixture
def model(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny pipeline's folder."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def model_of(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a repository that belong to its model."""
    return {name: content for name, content in files.items() if name == "model_index.json" or "/" in name}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(error: str) -> str:
    """The last line of a traceback."""
    return error.strip().splitlines()[-1]


# pushing


def test_a_repository_holds_the_model_its_card_and_its_code(server, pushed, tiny_folder):
    files = server.files(pushed)
    assert model_of(files) == on_disk(tiny_folder)
    extra = set(files) - set(model_of(files)) - {".gitattributes"}
    assert extra == {"README.md", *remote_code.sources()}
    assert "pipeline.py" in extra
    assert len(server.repo(pushed).history()) == 2  # the second is the Hub's own
    assert server.unknown == []


def test_what_has_not_changed_makes_no_commit(server, clients, pushed, tiny_folder):
    before = server.repo(pushed).history()
    sent = server.asked("PUT", "lfs")
    done = clients.run(PUSH, tiny_folder, pushed).checked()
    assert server.repo(pushed).history() == before
    assert done.out.strip() == before[0].oid
    assert server.asked("PUT", "lfs") == sent


def test_nothing_else_leaves_the_folder(server, clients, pushed, model):
    config = model / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_name_or_path": "/nowhere/mine/unet"}))
    strays = [".env", "token.txt", "token.json", "optimizer.bin", "logs/run.json"]
    strays += [f"unet/{name}" for name in ("notes.md", "a.txt", "a.pt", "a.model", "client_secret.json", "key.json")]
    for name in strays:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text(json.dumps({"access_token": TOKEN}))
    done = clients.run(PUSH, model, "org/clean", HF_DEBUG="1").checked()
    files = server.files("org/clean")
    assert files.keys() == server.files(pushed).keys()
    assert json.loads(files["unet/config.json"]) == json.loads(server.files(pushed)["unet/config.json"])
    for text in (done.out, done.err, *(content.decode("latin-1") for content in files.values())):
        assert TOKEN not in text
        assert "/nowhere/mine" not in text


def test_the_token_goes_to_the_hub_alone(server, clients, model):
    """And not to the servers that store large files."""
    for part in ("unet", "vae"):  # one in parts, one whole
        getattr(tiny_pipeline(seed=71), part).save_pretrained(model / part)
    before = len(server.requests)
    clients.forget()
    clients.run(PUSH + "\nfrom backshan_diffusers.hub import pull; pull(sys.argv[2])", model, "org/told").checked()
    asked = server.requests[before:]
    stored = [(method, path, token) for method, path, token in asked if re.match("/(cdn|lfs|lfs-part)/", path)]
    assert {path.split("/")[1] for _, path, _ in stored} == {"cdn", "lfs", "lfs-part"}
    assert not any(token for _, _, token in stored)
    assert all(token for _, path, token in asked if path.startswith("/org/told/resolve/"))


def test_an_index_names_no_folder_outside(server, clients, model):
    shutil.copytree(model / "unet", model.parent / "outside")
    index = json.loads((model / "model_index.json").read_text())
    index |= {"../outside": index["unet"], "unet/../../outside": index["unet"]}
    (model / "model_index.json").write_text(json.dumps(index))
    clients.run(PUSH, model, "org/narrow").checked()
    assert not any("outside" in name for name in server.files("org/narrow"))


def test_nothing_else_leaves_the_folder_of_a_controlnet(server, clients, model):
    for name in ("token.json", "service_account.json", "a.model", "training.json"):
        (model / "controlnet" / name).write_text(json.dumps({"access_token": TOKEN}))
    clients.run(PUSH, model / "controlnet", "org/clean-net").checked()
    kept = {".gitattributes", "README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert server.files("org/clean-net").keys() == kept


@pytest.mark.parametrize(
    ("name", "is_sent"),
    [
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", True),
        ("diffusion_pytorch_model.safetensors.index.fp16.json", True),
        ("scheduler_config.json", True),
        ("preprocessor_config.json", True),
        ("special_tokens_map.json", True),
        ("vocab.json", True),
        ("merges.txt", True),
        ("spiece.model", True),
        ("client_config.json", False),
        ("pytorch_model.bin.index.json", False),
    ],
)
def test_what_is_called_like_a_file_of_a_model(name, is_sent):
    assert (hub.MODEL_FILE.fullmatch(name) is not None) is is_sent


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/preupload/", "500"),
        ("POST", "objects/batch", "503"),
        ("PUT", "/lfs/", "500"),
        ("PUT", "/lfs/", "drop"),
        ("PUT", "/lfs-part/", "stall"),
        ("POST", "/lfs-complete/", "lost"),
        ("POST", "/commit/", "500"),
        ("POST", "/commit/", "stall"),
        ("POST", "/commit/", "drop"),
        ("POST", "/commit/", "lost"),
        *(("POST", "/commit/", code) for code in ("408", "412", "429", "504")),
        ("POST", "/repos/create", "500"),
        ("POST", "/validate-yaml", "503"),
        ("GET", "/api/models/", "drop"),
    ],
)
def test_what_fails_is_tried_again(server, clients, model, method, path, kind):
    name = f"org/again-{len(server.repos)}"
    seed = len(server.repos) + 100  # nothing like it was sent before
    tiny_pipeline(seed=seed).unet.save_pretrained(model / "unet")
    tiny_pipeline(seed=seed).vae.save_pretrained(model / "vae")
    server.faults.append(Fault(method, path, kind))
    clients.run(IMPATIENT + PUSH, model, name).checked()
    assert server.faults[0].times == 0
    assert model_of(server.files(name)) == on_disk(model)
    assert len(server.repo(name).history()) == 2


def test_a_page_in_place_of_an_answer_is_no_refusal(server, clients, tiny_folder):
    """huggingface_hub asks whether a card is good, after us, and takes any answer for JSON."""
    server.faults += [Fault("POST", "/validate-yaml", "none"), Fault("POST", "/validate-yaml", "502")]
    clients.run(IMPATIENT + PUSH, tiny_folder, "org/by-gateway").checked()
    assert server.faults[1].times == 0
    assert model_of(server.files("org/by-gateway")) == on_disk(tiny_folder)


def test_whoever_asks_the_hub_beside_us_waits_as_before():
    session = get_session()
    before = session.timeout
    with pytest.raises(KeyError), hub._no_endless_silence():
        assert session.timeout.read == hub.STALLED_AFTER_S != before.read
        raise KeyError
    assert session.timeout == before


def test_what_is_tried_again():
    """The network may come back by itself; it does not where it is switched off."""
    assert hub._may_pass(ConnectionError())
    assert not hub._may_pass(OfflineModeIsEnabled())
    assert not hub._may_pass(hub.HubError())


def test_a_repository_that_was_renamed_is_found(server, clients, pushed):
    server.moved["org/old-name"] = pushed
    clients.forget()
    code = "from backshan_diffusers.hub import pull; print(pull('org/old-name').name)"
    assert clients.run(code).checked().out.strip() == server.repo(pushed).find("main").oid


def test_no_config_tells_where_it_lay(model):
    for name in ("unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
        content = json.loads((model / name).read_text())
        places = dict.fromkeys(
            ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file"), "/models/mine"
        )
        (model / name).write_text(json.dumps(content | places))
        content.pop("_name_or_path", None)
        assert json.loads(hub._model_files(model)[name]) == content


def test_too_many_failures_are_said_and_nothing_is_visible(server, clients, tiny_folder):
    server.faults.append(Fault("POST", "/commit/", "500", 100))
    done = clients.run(IMPATIENT + PUSH, tiny_folder, "org/never")
    assert done.code == 1
    assert "UnreachableHubError: the Hub does not answer as it should (" in said(done.err)
    assert list(server.files("org/never")) == [".gitattributes"]
    assert server.asked("POST", "/org/never/commit/") == 4


def test_two_who_push_at_once_come_one_after_the_other(server, clients, tmp_path):
    """Both have read the same state of the branch, which neither of them had found, before either commits."""
    tiny_pipeline(seed=61).save_pretrained(tmp_path / "one", max_shard_size="50KB")
    tiny_pipeline(seed=62).save_pretrained(tmp_path / "two")
    push = "import sys; from backshan_diffusers.hub import push; folder, message = sys.argv[1:]\n"
    push += "print(push(folder, 'org/shared', revision='dev', message=message).oid)"
    server.faults += [Fault("POST", "/branch/", "meet", 2), Fault("POST", "/commit/", "meet", 2)]

    def push_in_a_process(name: str) -> tuple[str, str]:
        return run_apart(server, tmp_path / f"home of {name}", push, tmp_path / name, name).checked().out.strip(), name

    with ThreadPoolExecutor() as pool:
        pushed = dict(pool.map(push_in_a_process, ("one", "two")))
    assert [fault.times for fault in server.faults] == [0, 0]
    assert server.asked("POST", "/org/shared/commit/") == 3  # one was refused
    newest, older, _ = server.repo("org/shared").history("dev")
    assert {newest.oid: newest.title, older.oid: older.title} == pushed
    for commit in (newest, older):
        files = {name: server.read(file) for name, file in commit.files.items()}
        assert model_of(files) == on_disk(tmp_path / commit.title)


def test_who_is_overtaken_each_time_is_told(server, clients, tiny_folder):
    server.faults.append(Fault("POST", "/commit/", "412", 100))
    done = clients.run(IMPATIENT + PUSH, tiny_folder, "org/overtaken")
    assert "UnreachableHubError: others push to org/overtaken at the same time and were faster each" in said(done.err)
    assert list(server.files("org/overtaken")) == [".gitattributes"]


def test_a_run_does_not_end_with_the_network(server, clients, tiny_folder, tmp_path):
    code = (
        IMPATIENT
        + """
import sys
from pathlib import Path
for folder in (sys.argv[1], sys.argv[2]):
    hub.push_finished(Path(folder), "org/training", print, private=True)
"""
    )
    server.faults.append(Fault("POST", "/commit/", "drop", 100))
    out = clients.run(code, tiny_folder, tmp_path).checked().out
    assert f"{tiny_folder} was not pushed to org/training: the Hub does not answer as it should (" in out
    assert f"{tmp_path} was not pushed to org/training: {tmp_path} has no model_index.json" in out
    server.faults.clear()
    assert clients.run(code, tiny_folder, tiny_folder).checked().out == ""
    assert model_of(server.files("org/training")) == on_disk(tiny_folder)


def test_adapters_go_with_their_pipeline_and_leave_with_it(server, clients, model, tiny_folder):
    unet = tiny_pipeline().unet
    add_lora(unet, 2)
    save_lora(unet, model)
    adapters = (model / LORA_WEIGHT_NAME_SAFE).read_bytes()
    code = PUSH + "\nfrom backshan_diffusers.hub import pull; print(pull(sys.argv[2]))"
    pulled = clients.run(code, model, "org/adapted").checked().out.split()[-1]
    assert server.files("org/adapted")[LORA_WEIGHT_NAME_SAFE] == adapters
    assert Path(pulled, LORA_WEIGHT_NAME_SAFE).read_bytes() == adapters
    clients.run(PUSH, tiny_folder, "org/adapted").checked()
    assert LORA_WEIGHT_NAME_SAFE not in server.files("org/adapted")


TRAIN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
AT_ONCE = """
from concurrent.futures import Future
from huggingface_hub import HfApi
def run_at_once(self, call, *arguments):
    done = Future()
    done.set_result(call(*arguments))
    return done
HfApi.run_as_future = run_at_once
"""
"""Before code that pushes by a thread: the training waits for it, so that no push is left out."""


@pytest.fixture(scope="module")
def script(clients, tiny_folder) -> list:
    """The training script with a config of four steps in each of two stages, and a checkpoint at each second one."""
    config = clients.folder / "four-steps.yaml"
    values = {"base_model": str(tiny_folder), "train_pairs": 2, "validation_pairs": 1, "objective": {"preset": "mse"}}
    values |= {"max_steps": 4, "batch_size": 1, "checkpoint_every": 2, "log_every": 1, "report_to": "none"}
    values |= {"cache_dir": str(clients.folder / "cache"), "stages": {"controlnet": {}, "joint": {}}}
    config.write_text(yaml.safe_dump(values))
    return [Path(__file__).parents[1] / "examples" / "train_backshan.py", "--config", config, "--output_dir"]


@pytest.fixture(scope="module")
def trained(clients, script) -> Path:
    """The folder of a run that has pushed nothing."""
    clients.run(TRAIN, *script, clients.folder / "trained").checked()
    return clients.folder / "trained"


def weights_in(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in on_disk(folder).items() if name.endswith(".safetensors")}


def titles(server, repo: str, branch: str) -> list[str]:
    """Of the commits, oldest first, without the Hub's own."""
    return [commit.title for commit in server.repo(repo).history(branch)][-2::-1]


def test_the_training_script_pushes_what_it_has_finished(server, clients, script, trained):
    train = [*script, trained, "--push_to_hub", "org/run", "--hub_private"]
    server.faults.append(Fault("POST", "/commit/", "500", 100))
    done = clients.run(IMPATIENT + TRAIN, *train)
    assert done.code == 0 and "was not pushed to org/run: the Hub does not answer as it should (" in done.err
    server.faults.clear()
    assert clients.run(TRAIN, *train).code == 0
    assert server.repo("org/run").private
    files, weights = server.files("org/run"), weights_in(trained / "joint/pipeline")
    assert len(weights) == 4 and weights.items() <= files.items()


def test_the_training_script_pushes_what_it_has_so_far(server, clients, script, trained):
    """The first push fails with the network. The run goes on, with the same weights as one that pushes nothing."""
    run = clients.folder / "pushing"
    train = [*script, run, "--push_to_hub", "org/so-far", "--hub_private", "--push_every", "1"]
    server.faults.append(Fault("POST", "", "drop", 4))
    done = clients.run(IMPATIENT + AT_ONCE + TRAIN, *train).checked()
    failures = [line for line in done.err.splitlines() if "was not pushed" in line]
    assert len(failures) == 1
    assert failures[0].startswith("step 2 of controlnet was not pushed to org/so-far: the Hub does not answer as it")
    stages = ["Stage controlnet, step 4", "Stage joint, step 2", "Stage joint, step 4"]
    assert titles(server, "org/so-far", "training") == stages
    assert titles(server, "org/so-far", "main") == ["Push a pipeline of backshan_diffusers"]
    assert server.repo("org/so-far").private
    assert weights_in(run) == weights_in(trained) and len(weights_in(run)) > 10
    assert not (run / ".pushed").exists()
    last, before, *_ = server.repo("org/so-far").history("training")
    ended, halfway = ({name: server.read(file) for name, file in each.files.items()} for each in (last, before))
    assert weights_in(run / "joint/pipeline").items() <= ended.items()
    changed = {name for name in weights_in(run / "joint/pipeline") if halfway[name] != ended[name]}
    assert changed == {"unet/diffusion_pytorch_model.safetensors", "controlnet/diffusion_pytorch_model.safetensors"}
    assert b"Stage `joint`: 2 of 4 steps of 1 pairs" in halfway["README.md"]

    shutil.rmtree(run / "joint/checkpoint-4")  # as if the run had been killed after the push and lost what it had
    shutil.rmtree(run / "joint/pipeline")
    clients.run(AT_ONCE + TRAIN, *train).checked()
    assert titles(server, "org/so-far", "training") == stages
    assert len(titles(server, "org/so-far", "main")) == 1


def test_a_run_that_is_killed_in_a_push_pushes_on(server, clients, script):
    run = clients.folder / "killed"
    train = [*script, run, "--push_to_hub", "org/killed-run", "--push_every", "1"]
    server.faults += [Fault("POST", "/commit/", "none"), Fault("POST", "/commit/", "stall", 100)]
    number = clients.start(AT_ONCE + TRAIN, *train)
    wait_until(lambda: server.faults[1].times < 100)
    clients.kill(number)
    server.faults.clear()
    clients.run(AT_ONCE + TRAIN, *train).checked()
    stages = ["Stage controlnet, step 2", "Stage joint, step 2", "Stage joint, step 4"]
    assert titles(server, "org/killed-run", "training") == stages
    assert len(titles(server, "org/killed-run", "main")) == 1
    assert not (run / ".pushed").exists()


def test_the_training_does_not_wait_for_a_push(server, clients, script):
    run = clients.folder / "going-on"
    train = [*script, run, "--push_to_hub", "org/slow", "--push_every", "1"]
    server.faults.append(Fault("POST", "/commit/", "stall", 10_000))
    patient = "from backshan_diffusers import hub; hub.WAITS_S = (0,) * 1000; hub.STALLED_AFTER_S = 1.0\n"
    number = clients.start(patient + TRAIN, *train)
    wait_until(lambda: (run / "joint/pipeline").exists())
    server.faults.clear()
    done = clients.wait(number).checked()
    assert "step 4 of joint was not pushed to org/slow: the push before is still under way." in done.err
    assert titles(server, "org/slow", "training") == ["Stage controlnet, step 2"]
    assert weights_in(run / "joint/pipeline").items() <= server.files("org/slow").items()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--push_every", "2"], "push_every is given without push_to_hub: say where to push."),
        (["--push_to_hub", "org/x", "--push_every", "0"], "'--push_every 0' cannot be read"),
        (["--push_to_hub", "a b"], "'a b' is no id of a repository: give one as owner/name."),
    ],
)
def test_what_the_script_cannot_push_is_refused_before_it_trains(clients, script, options, words):
    done = clients.run(TRAIN, *script, clients.folder / "refused", *options)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err
    assert not (clients.folder / "refused").exists()


def test_a_push_that_was_killed_goes_on(server, clients, model):
    small = ("vae", "text_encoder", "controlnet")
    for part in ("unet", *small):  # none that the server has already
        getattr(tiny_pipeline(seed=50), part).save_pretrained(model / part)
    before = server.asked("POST", "/lfs-verify")
    server.faults.append(Fault("PUT", "/lfs-part/", "stall", 100))  # the U-Net's, which is the only large one
    number = clients.start(PUSH, model, "org/killed")
    wait_until(lambda: server.faults[0].times < 100 and server.asked("POST", "/lfs-verify") == before + len(small))
    clients.kill(number)
    assert list(server.files("org/killed")) == [".gitattributes"]
    server.faults.clear()
    whole = server.asked("PUT", "/lfs/")
    clients.run(PUSH, model, "org/killed").checked()
    assert server.asked("PUT", "/lfs/") == whole  # what was complete is not sent again
    assert model_of(server.files("org/killed")) == on_disk(model)
    assert len(server.repo("org/killed").history()) == 2


def wait_until(holds):
    end = time.monotonic() + 250
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_through_xet(server, clients, tiny_folder):
    code = PUSH + "\nfrom backshan_diffusers.hub import pull; print(push(*sys.argv[1:3]).oid, pull(sys.argv[2]))"
    with_xet = "from huggingface_hub import constants; constants.HF_HUB_DISABLE_XET = False\n"
    clients.forget()
    done = clients.run(with_xet + code, tiny_folder, "org/xet")
    first, second, folder = done.checked().out.split()
    commit = server.repo("org/xet").find("main")
    assert first == second == commit.oid
    weights = [name for name in commit.files if name.endswith(".safetensors")]
    assert all(server.xet_hash(commit.files[name].sha256) for name in weights)
    assert len(weights) == 4
    assert model_of(on_disk(Path(folder))) == on_disk(tiny_folder)


def test_a_private_repository(server, clients, tiny_folder, pushed):
    push = "import sys; from backshan_diffusers.hub import push; push(sys.argv[1], sys.argv[2], private=True)"
    clients.run(push, tiny_folder, "org/private").checked()
    assert server.repo("org/private").private
    pull = "from backshan_diffusers.hub import pull; print(pull('org/private'))"
    stranger = clients.run(pull, HF_TOKEN="")
    assert said(stranger.err).endswith(
        "MissingRepoError: org/private does not exist, or is private and needs a token: check its name, or log in"
        " (hf auth login)."
    )
    folder = clients.run(pull).checked().out.strip()
    assert model_of(on_disk(Path(folder))) == on_disk(tiny_folder)
    clients.forget()
    given = f"from backshan_diffusers.hub import pull; print(pull('org/private', token='{TOKEN}'))"
    given_folder = clients.run(given, HF_TOKEN="").checked().out.strip()
    assert model_of(on_disk(Path(given_folder))) == on_disk(tiny_folder)
    clients.forget()
    known = "from backshan_diffusers import BackToFrontPipeline as P; P.from_pretrained('org/private', token='%s')"
    clients.forget()
    clients.run(known % TOKEN, HF_TOKEN="").checked()
    refused = clients.run(push, tiny_folder, pushed)
    assert f"{pushed} exists and is public: make it private on the Hub first" in said(refused.err)


def test_another_branch(server, clients, pushed, model):
    tiny_pipeline(seed=5).unet.save_pretrained(model / "unet")
    before = server.files(pushed)
    push = "import sys; from backshan_diffusers.hub import push; push(sys.argv[1], sys.argv[2], revision='steps/100')"
    clients.run(push, model, pushed).checked()
    assert server.files(pushed) == before
    assert model_of(server.files(pushed, "steps/100")) == on_disk(model)
    commit = server.repo(pushed).branches["steps/100"]
    server.repo(pushed).tags["v1"] = commit
    load = """
    import sys
    from backshan_diffusers import BackToFrontPipeline
    from backshan_diffusers.hub import pull
    for revision in ("steps/100", "v1", sys.argv[2]):
        pipe = BackToFrontPipeline.from_pretrained(sys.argv[1], revision=revision)
        print(float(pipe.unet.conv_in.weight.sum()), pull(sys.argv[1], revision))
    print(float(BackToFrontPipeline.from_pretrained(sys.argv[1]).unet.conv_in.weight.sum()), "main")
    """
    out = clients.run(textwrap.dedent(load), pushed, commit).checked().out.split()
    first, other = (str(float(tiny_pipeline(seed=seed).unet.conv_in.weight.sum())) for seed in (5, 0))
    assert out[::2] == [first] * 3 + [other]
    assert all(folder.endswith(commit) for folder in out[1:6:2])


def test_a_card_of_ones_own_stays(server, clients, tiny_folder):
    clients.run(PUSH, tiny_folder, "org/own").checked()
    assert cards.MARK in server.files("org/own")["README.md"].decode()
    server.put("org/own", {"README.md": b"---\nlicense: mit\n---\nMine."})
    clients.run(PUSH, tiny_folder, "org/own").checked()
    assert server.files("org/own")["README.md"].endswith(b"Mine.")
    server.put("org/own", {"README.md": f"---\nlicense: mit\n---\n{cards.MARK}".encode()})
    clients.run(PUSH, tiny_folder, "org/own").checked()
    assert b"## How to use" in server.files("org/own")["README.md"]


def test_weights_of_an_earlier_push_do_not_win(server, clients, tmp_path):
    tiny_pipeline(seed=1).save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    tiny_pipeline(seed=2).save_pretrained(tmp_path / "whole")
    load = """
    import sys
    from backshan_diffusers import BackToFrontPipeline
    print(float(BackToFrontPipeline.from_pretrained(sys.argv[1]).unet.conv_in.weight.sum()))
    """
    for number, name in enumerate(("sharded", "whole"), start=1):
        clients.run(PUSH, tmp_path / name, "org/shards").checked()
        assert model_of(server.files("org/shards")) == on_disk(tmp_path / name)
        out = clients.run(textwrap.dedent(load), "org/shards").checked().out
        assert float(out) == float(tiny_pipeline(seed=number).unet.conv_in.weight.sum())
    assert any("-of-" in name for name in server.repo("org/shards").history()[1].files)


def test_variants_lie_beside_each_other(server, clients, tiny_folder):
    clients.run(PUSH, tiny_folder, "org/variants").checked()
    code = """
    import sys, torch
    from backshan_diffusers import BackToFrontPipeline
    pipe = BackToFrontPipeline.from_pretrained(sys.argv[1]).to(torch.float16)
    pipe.push_to_hub("org/variants", variant="fp16")
    loaded = BackToFrontPipeline.from_pretrained("org/variants", variant="fp16", dtype=torch.float16)
    assert all((a == b).all() for a, b in zip(loaded.unet.parameters(), pipe.unet.parameters()))
    from backshan_diffusers.hub import pull
    print(pull("org/variants"))
    """
    folder = clients.run(textwrap.dedent(code), tiny_folder).checked().out.strip().splitlines()[-1]
    names = set(model_of(server.files("org/variants")))
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in names
    assert "text_encoder/model.fp16.safetensors" in names
    assert set(on_disk(tiny_folder)) <= names
    assert load_file(Path(folder) / "unet/diffusion_pytorch_model.safetensors").keys()
    clients.forget()
    pulled = clients.run("from backshan_diffusers.hub import pull; print(pull('org/variants'))").checked().out.strip()
    assert set(model_of(on_disk(Path(pulled)))) == set(on_disk(tiny_folder))
    newest, older, _ = server.repo("org/variants").history()
    assert newest.files["README.md"] == older.files["README.md"]  # what it says of the plain form is still right
    clients.run(PUSH, tiny_folder, "org/variants").checked()
    last = server.repo("org/variants").find("main").files
    changed = {name for name in last | newest.files if last.get(name) != newest.files.get(name)}
    assert changed <= {"tokenizer/tokenizer_config.json", "text_encoder/config.json"}  # which note how it was loaded


@pytest.mark.parametrize(
    ("present", "pushed", "adds"),
    [
        (["unet/a.safetensors"], ["unet/a.fp16.safetensors", "unet/config.json"], True),
        (["unet/a.safetensors"], ["unet/a.safetensors"], False),
        (["unet/a.fp16.safetensors"], ["unet/a.fp16.safetensors"], False),
        (["unet/a.safetensors"], ["unet/a.fp16.safetensors", "vae/a.fp16.safetensors"], False),
        (["unet/a.safetensors"], ["unet/config.json"], False),
    ],
)
def test_whether_a_variant_is_added_to_the_plain_form(present, pushed, adds):
    assert hub.adds_a_variant(present, pushed) is adds


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("unet/diffusion_pytorch_model.safetensors", ""),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ("unet/diffusion_pytorch_model-00001-of-00002.safetensors", ""),
        ("unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "fp16"),
        ("unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "fp16"),
        ("unet/diffusion_pytorch_model.safetensors.index.json", ""),
        ("unet/diffusion_pytorch_model.safetensors.index.fp16.json", "fp16"),
        ("text_encoder/pytorch_model.bin", ""),
        ("unet/config.json", None),
        ("model_index.json", None),
        ("sheet.png", None),
    ],
)
def test_the_variant_in_a_name(name, variant):
    assert hub.variant_of(name) == variant


def test_the_classes_push_themselves(server, clients, tiny_folder):
    code = """
    import sys
    from backshan_diffusers import BackToFrontPipeline
    pipe = BackToFrontPipeline.from_pretrained(sys.argv[1])
    pipe.push_to_hub("org/by-class", commit_message="from Python")
    pipe.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="org/by-save")
    pipe.controlnet.push_to_hub("org/net-by-class", private=True)
    pipe.controlnet.push_to_hub("org/by-class", subfolder="other")
    pipe.controlnet.push_to_hub("org/net-by-class", create_pr=True)
    pipe.controlnet.register_to_config(default_num_inference_steps=2)
    pipe.controlnet.push_to_hub("org/net-by-class", create_pr=True)
    """
    clients.run(textwrap.dedent(code), tiny_folder, clients.folder / "saved").checked()
    for name in ("org/by-class", "org/by-save"):
        files = server.files(name)
        for path, content in on_disk(tiny_folder).items():  # transformers notes in a tokenizer's how it was loaded
            assert path == "tokenizer/tokenizer_config.json" or files[path] == content
        assert b"## How to use" in files["README.md"]
        assert "pipeline.py" in files
    assert [each.title for each in server.repo("org/by-class").history()][1] == "from Python"
    assert "other/config.json" in server.files("org/by-class")
    assert "other/README.md" not in server.files("org/by-class")
    files = server.files("org/net-by-class")
    assert set(files) == {".gitattributes", "README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert b"A ControlNet of" in files["README.md"]
    assert server.repo("org/net-by-class").private
    assert (
        list(server.repo("org/net-by-class").pulls) == ["refs/pr/1"]
        or "refs/pr/2" in server.repo("org/net-by-class").pulls
    )


def test_the_classes_push_as_the_function_does(server, clients, tiny_folder):
    """Also what diffusers asks before it uploads: failures are survived, or said in one sentence."""
    code = (
        IMPATIENT
        + """
import sys
from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.hub import HubError
model = BackToFrontPipeline.from_pretrained(sys.argv[1]).controlnet
print(model.push_to_hub("net-of-mine").repo_url.repo_id)
for arguments in (
    {"repo_id": "org/net", "token": "hf_wrong"},
    {"repo_id": "a b"},
    {"repo_id": "net-of-mine", "private": True},
    {"repo_id": "org/net", "safe_serialization": False},
):
    try:
        model.push_to_hub(**arguments)
    except (HubError, ValueError) as error:
        print(type(error).__name__, error)
"""
    )
    server.faults += [Fault("POST", "/repos/create", "500"), Fault("POST", "/repos/create", "drop")]
    made, *refusals = clients.run(code, tiny_folder).checked().out.splitlines()
    assert server.faults[0].times == server.faults[1].times == 0
    owner, name = made.split("/")
    assert (owner, name) != ("org", name) and name == "net-of-mine"
    assert b"A ControlNet of" in server.files(made)["README.md"]
    assert refusals == [
        "HubError this token may not do that with org/net: log in with one that may (hf auth login).",
        "HubError 'owner/a b' is no id of a repository: give one as owner/name.",
        f"HubError {made} exists and is public: make it private on the Hub first, or give another name.",
        "ValueError weights are pushed as safetensors only: leave safe_serialization out.",
    ]
    assert ("models", "org/net") not in server.repos


def test_the_classes_push_with_the_token_that_is_given(server, clients, tiny_folder):
    code = "import sys; from backshan_diffusers import BackToFrontPipeline as P; P.from_pretrained(sys.argv[1])"
    code += f".controlnet.push_to_hub('org/by-token', token='{TOKEN}')"
    clients.run(code, tiny_folder, HF_TOKEN="").checked()
    assert "config.json" in server.files("org/by-token")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json, and no config.json"),
        (lambda folder: shutil.rmtree(folder / "unet"), "model/unet is missing"),
        (
            lambda folder: (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae/model.bin"),
            "has its weights only as a pickle",
        ),
        (
            lambda folder: (folder / "controlnet/config.json").write_text("{}"),
            "does not record how it reads a picture",
        ),
        (lambda folder: (folder / "evaluation.json").write_text("{}"), "is no report of benchmarks/mini_quality.py"),
        (lambda folder: (folder / "training_config.yaml").write_text("- 1"), "holds no training config"),
    ],
)
def test_a_folder_that_cannot_be_pushed(model, change, words):
    change(model)
    with pytest.raises((OSError, ValueError), match=words) as refusal:
        hub.push(model, "org/any")  # nothing is asked of any Hub
    assert str(refusal.value).count("\n") == 0


@pytest.mark.parametrize("name", ["", "a/b/c", "../up", "/abs/olute", "a b", "a--b", "org/..", "no-owner"])
def test_names_that_no_repository_has(name, tiny_folder):
    for call in (lambda: hub.push(tiny_folder, name), lambda: hub.pull(name), lambda: hub.pull_pairs(name)):
        with pytest.raises(hub.HubError, match="is no id of a repository: give one as owner/name."):
            call()


@pytest.mark.parametrize("name", ["", "../up", "/abs", "a/../b", "a//b", "a/", ".hidden", "a\\b"])
def test_folders_that_no_repository_has(name, tiny_folder):
    with pytest.raises(hub.HubError, match="is no folder of a repository: give a name, as controlnet."):
        hub.push(tiny_folder, "org/any", subfolder=name)  # nothing is asked of any Hub


# cards


def with_records(model: Path, **record) -> Path:
    """A run's folder: the pipeline with what lies beside it."""
    folder = model.rename(model.with_name("pipeline"))
    record = {"stage": "joint", "source": "wardrobe", "base_model": None, "max_steps": 7, "batch_size": 2} | record
    (folder.parent / "training_config.yaml").write_text(yaml.safe_dump(record))
    results = {"count": 5, "size_px": 64, "split": "test"}
    results["systems"] = {"generated": {"person_l1": {"mean": 0.125, "low": 0.1, "high": 0.2}}}
    table = {"title": "5 test pairs", "columns": ["system", "person L1"], "rows": [["generated", "0.125"]]}
    (folder.parent / "evaluation.json").write_text(json.dumps({"results": results, "tables": [table]}))
    PIL.Image.new("RGB", (8, 8)).save(folder.parent / "sheet.png")
    return folder


@pytest.mark.parametrize(("before", "licence"), [({"source": "folder"}, "other"), ({"seed": 4}, "apache-2.0")])
def test_a_card_says_what_the_first_steps_were_trained_with(server, clients, model, before, licence):
    accepted = [{"step": 3, "before": before | {"source_path": "anna/photos/2026"}}]
    clients.run(PUSH, with_records(model, accepted=accepted), "org/changed").checked()
    files = server.files("org/changed")
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == licence
    (change,) = yaml.safe_load(card.text.partition("```yaml")[2].partition("```")[0])["accepted"]
    assert change == {"step": 3, "before": before | {"source_path": "(a folder)"}}
    assert not any(b"anna" in content for content in files.values())


def test_a_card_says_what_is_known(server, clients, model):
    folder = with_records(model, output_dir="runs/x", cache_dir="/cache", source_path=None)
    clients.run(PUSH, folder, "org/known").checked()
    files = server.files("org/known")
    card = ModelCard(files["README.md"].decode())
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "diffusers", "image-to-image")
    assert (data.base_model, data.model_name) == (None, "known")
    assert "\n# known\n" in card.text
    assert set(data.tags) == {"backshan-diffusers", "controlnet", "stable-diffusion", "back-to-front"}
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("person_l1", 0.125, "test")
    assert (result.task_type, result.dataset_type) == ("image-to-image", "wardrobe")
    assert files["sheet.png"] == (folder.parent / "sheet.png").read_bytes()
    assert "![Back, generated front and true front](sheet.png)" in card.text
    assert "| generated | 0.125 |" in card.text
    assert "Stage `joint`: 7 steps of 2 pairs of the source `wardrobe`. All settings of this stage:" in card.text
    assert "Those were drawn by code" in card.text
    assert "A generated front is a\nguess, not a fact" in card.text
    assert "The back picture enters the U-Net through a\nControlNet (`conditioning: rgb`" in card.text
    assert "Stable Diffusion's" not in card.text  # it was made from nothing
    assert "consented" in card.text
    for place in ("runs/x", "/cache", "output_dir"):
        assert place not in card.text
    assert "{{" not in card.text


def test_a_card_names_repositories_and_no_folders(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("anna/coats").mkdir(parents=True)
    own = {"source": "folder", "source_path": "anna/coats", "base_model": "anna/coats", "controlnet": "anna/coats"}
    folder = with_records(model, **own)
    card = ModelCard(cards.model_card(folder, "org/own"))
    assert (card.data.base_model, card.data.datasets) == (None, None)
    assert "anna" not in str(card)
    shutil.rmtree("anna")
    card = ModelCard(cards.model_card(folder, "org/of-repositories"))
    assert (card.data.base_model, card.data.datasets) == ("anna/coats", None)
    told = yaml.safe_load(card.text.partition("```yaml")[2].partition("```")[0])
    assert (told["controlnet"], told["source_path"]) == ("anna/coats", "(a folder)")  # pairs come from no repository


def test_a_card_names_no_folder_that_training_has_marked(model):
    before = {"base_model": "./anna/coats", "source_path": "anna/coats"}
    own = {"source": "folder", **before, "controlnet": "./anna/coats", "accepted": [{"step": 3, "before": before}]}
    card = ModelCard(cards.model_card(with_records(model, **own), "org/marked"))
    assert card.data.base_model is None
    assert "anna" not in str(card)


@pytest.mark.parametrize(
    ("width", "base"), [(768, "stable-diffusion-v1-5/stable-diffusion-v1-5"), (32, "OWNER/ITS-BASE-MODEL")]
)
def test_a_controlnet_is_shown_with_a_base_that_fits_its_prompts(model, width, base):
    config = model / "controlnet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cross_attention_dim": width}))
    shown = cards.model_card(model / "controlnet", "org/net")
    assert shown.count(f'from_pretrained("{base}"') == 2


def test_a_card_of_a_model_made_from_another(model):
    folder = with_records(model, base_model="some/base", source="folder", source_path="/nowhere/mine/people")
    card = ModelCard(cards.model_card(folder, "org/derived"))
    assert (card.data.license, card.data.base_model) == ("other", "some/base")
    assert "has not named a licence for the weights: ask before you use them" in card.text
    assert "`some/base`, holds for them too" in card.text
    assert "/nowhere/mine" not in card.text
    assert "drawn by code" not in card.text
    assert ModelCard(cards.model_card(folder, "org/derived", "mit")).data.license == "mit"
    with_place = ModelCard(cards.model_card(with_records(folder, base_model=str(folder)), "org/x"))
    assert (with_place.data.base_model, with_place.data.license) == (None, "other")
    assert str(folder.parent) not in with_place.text


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"processes": 4}, "7 steps of 8 pairs of the source `wardrobe`. All settings"),
        ({"processes": 4, "gradient_accumulation_steps": 3}, "7 steps of 24 pairs of the source `wardrobe`. All"),
        ({"stage": "vae"}, "Stage `vae`: 7 steps of up to 2 pairs of"),
        ({"steps_done": 5}, "5 of 7 steps of 2 pairs of"),
        (
            {"base_model": "some/base"},
            "The run went on from `some/base`: the steps that were taken until then are not",
        ),
        ({"base_model": "/some/base"}, "The run went on from another model, which lay in a folder: the steps"),
        ({"accepted": [{"step": 3, "before": {"batch_size": 1}}]}, "The first steps had other values, as `accepted`"),
        ({"averaged": True}, "U-Net and ControlNet are the means of those of this run and of an earlier model. All"),
        (
            {"captions": ["glasses=true: glasses"]},
            "A prompt may go on, after commas, with the words of `captions`. All",
        ),
    ],
)
def test_a_card_says_what_a_step_was_and_what_came_before(model, record, sentence):
    assert sentence in cards.model_card(with_records(model, **record), "org/x")


def test_a_card_counts_no_steps_that_are_not_recorded(model):
    (model / "training_config.yaml").write_text(yaml.safe_dump({"base_model": "some/base"}))
    card = cards.model_card(model, "org/x")
    assert "\nAll that is recorded:\n\n```yaml\nbase_model: some/base\n```\n" in card
    assert "steps of" not in card


def test_a_card_tells_nothing_of_a_neighbour(model):
    """What lies beside a folder that no stage has written belongs to another model."""
    folder = with_records(model)
    other = Path(shutil.copytree(folder, folder.with_name("other")))
    assert "Not recorded." not in cards.model_card(folder, "org/x")
    assert "Not recorded." in cards.model_card(other, "org/x")
    (folder / "training_config.yaml").write_text(yaml.safe_dump({"stage": "prior"}))
    assert model_record.beside(folder, model_record.RECORD) == folder / "training_config.yaml"  # its own comes first


@pytest.mark.parametrize(
    "prompt",
    [
        'a "coat"',
        "it's",
        "a \\ and a \\n",
        "two\nlines\r",
        "```",
        "a\n```\nb",
        "a\n````\nb\n```\n",
        "{{ name }} \u2028 é",
    ],
)
def test_a_card_shows_any_prompt_as_it_is_recorded(model, prompt):
    config = model / "controlnet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"default_prompt": prompt}))
    folder = with_records(model, prompt=prompt)
    for shown, count in ((folder, 4), (folder / "controlnet", 2)):
        card = cards.model_card(shown, "org/prompted")
        calls = [node for code in blocks(card) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        assert [ast.literal_eval(call.args[0]) for call in calls if "image" in [k.arg for k in call.keywords]] == [
            prompt
        ]
        assert len(blocks(card)) == count
    ((_, told),) = re.findall(r"^(`{3,})yaml\n(.*?)^ {0,3}\1`*$", cards.model_card(folder, "org/x"), re.M | re.S)
    assert yaml.safe_load(told)["prompt"] == prompt


def test_a_card_where_nothing_is_known(model):
    text = cards.model_card(model, "org/x")
    assert "Not recorded." in text
    assert "Not measured." in text
    assert "\n# x\n" in text
    assert ModelCard(text).data.license == "other"


def test_the_card_of_the_embedded_model():
    card = ModelCard(cards.model_card(Path(MINI), "org/mine"))
    assert (card.data.license, card.data.base_model) == ("apache-2.0", None)
    report = json.loads((ROOT / "benchmarks/results/mini_quality.json").read_text())
    measured = {name: value["mean"] for name, value in report["results"]["systems"]["generated"].items()}
    assert {each.metric_type: each.metric_value for each in card.data.eval_results} == measured
    assert " | ".join(report["tables"][0]["rows"][1]) in card.text
    assert (
        "Stage `joint`: 210 steps of 16 pairs of the source `wardrobe`. The run went on from another model, which lay"
        " in a folder: the steps that were taken until then are not counted. The first steps had other values, as"
        " `accepted` says. U-Net and ControlNet are the means of those of this run and of an earlier model. A prompt"
        " may go on, after commas, with the words of `captions`." in card.text
    )
    assert "Those were drawn by code" in card.text
    assert "runs/" not in card.text


# the ways to load


def blocks(card: str) -> list[str]:
    return [code for _, code in re.findall(r"^(`{3,})python\n(.*?)^\1$", card, re.M | re.S)]


def fronts(clients, card: str, tmp_path: Path) -> list[np.ndarray]:
    """What the code of a card makes, each block in a process that has never downloaded anything."""
    made = []
    for number, code in enumerate(blocks(card)):
        clients.forget()
        before = "" if "backshan_diffusers" in code else WITHOUT_PACKAGE
        stock = "image=control" in code
        # the card's own call runs too; this one has a seed
        asked = '("Front side of the person", control)' if stock else '("back.png",)'
        settings = "{'num_inference_steps': 3, 'guidance_scale': 1.0}" if stock else "{}"
        after = f"\nassert front.size == (64, 64)\nasked, settings = {asked}, {settings}{FRONT}"
        path = tmp_path / f"{number}.npy"
        clients.run(before + code + after, path).checked()
        made.append(np.load(path))
    return made


@pytest.mark.parametrize("conditioning", ["rgb", "canny+rgb", "latents"])
def test_the_ways_on_the_card_of_a_pipeline(server, clients, tmp_path, drawn_backs, conditioning):
    tiny_pipeline(conditioning).save_pretrained(tmp_path / "model")
    # opened again, because weights lie otherwise in memory then, and the encoder of latents adds up in another order
    pipe = BackToFrontPipeline.from_pretrained(tmp_path / "model")
    name = f"org/ways-{conditioning.replace('+', '-')}"
    clients.run(PUSH, tmp_path / "model", name).checked()
    card = server.files(name)["README.md"].decode()
    codes = blocks(card)
    assert len(codes) == 4
    assert f'BackToFrontPipeline.from_pretrained("{name}")' in codes[0]
    assert f'custom_pipeline="{name}", trust_remote_code=True' in codes[1]
    assert "StableDiffusionControlNetPipeline.from_pretrained" in codes[2]
    assert 'subfolder="controlnet"' in codes[3]
    expected = pipe(
        drawn_backs[0], generator=torch.Generator().manual_seed(0), output_type="np", num_inference_steps=3
    ).images[0]
    made = fronts(clients, card, tmp_path)
    for number in (0, 1, 3):
        assert np.array_equal(made[number], expected)
    # a picture made by hand does so too
    assert np.abs(made[2] - expected).max() <= (1e-5 if conditioning == "latents" else 0)
    assert server.unknown == []


def test_the_ways_where_there_is_a_variant_alone(server, clients, tmp_path, drawn_backs):
    tiny_pipeline().to(torch.float16).save_pretrained(tmp_path / "model", variant="fp16")
    pipe = BackToFrontPipeline.from_pretrained(tmp_path / "model", variant="fp16", dtype=torch.float32)
    clients.run(PUSH, tmp_path / "model", "org/half-alone").checked()
    card = server.files("org/half-alone")["README.md"].decode()
    assert all('variant="fp16"' in code for code in blocks(card))
    expected = pipe(
        drawn_backs[0], generator=torch.Generator().manual_seed(0), output_type="np", num_inference_steps=3
    ).images[0]
    made = fronts(clients, card, tmp_path)
    assert all(np.array_equal(made[number], expected) for number in (0, 1, 3))
    assert np.abs(made[2] - expected).max() <= 1e-5
    clients.forget()
    pulled = clients.run(PULL, "org/half-alone").checked().out.strip()
    assert model_of(on_disk(Path(pulled))) == on_disk(tmp_path / "model")
    pipe.controlnet.half().save_pretrained(tmp_path / "net", variant="fp16")
    card = cards.model_card(tmp_path / "net", "org/half-net")
    assert all('("org/half-net", variant="fp16")' in code for code in blocks(card))


def test_the_ways_load_the_adapters_that_lie_beside_a_pipeline(server, clients, model, tmp_path, drawn_backs):
    plain = BackToFrontPipeline.from_pretrained(model)
    unet = tiny_pipeline().unet
    for weight in add_lora(unet, 2).parameters():
        torch.nn.init.normal_(weight)  # at first they add nothing
    save_lora(unet, model)
    adapted = BackToFrontPipeline.from_pretrained(model)
    adapted.load_lora_weights(model)
    without, expected = (
        pipe(drawn_backs[0], generator=torch.Generator().manual_seed(0), output_type="np").images[0]
        for pipe in (plain, adapted)
    )
    clients.run(PUSH, model, "org/with-adapters").checked()
    card = server.files("org/with-adapters")["README.md"].decode()
    assert "needs `peft`" in card
    for made in fronts(clients, card, tmp_path):
        assert np.abs(made - expected).max() <= 1e-5 < np.abs(made - without).max() / 100
    assert "peft" not in cards.model_card(model / "controlnet", "org/x")
    assert "load_lora_weights" not in cards.model_card(model / "controlnet", "org/x")


def test_the_carried_code_pushes_as_diffusers_does(server, clients, pushed):
    code = f"""
    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained("{pushed}", custom_pipeline="{pushed}", trust_remote_code=True)
    pipe.push_to_hub("org/carried")
    """
    clients.run(WITHOUT_PACKAGE + textwrap.dedent(code)).checked()
    files = server.files("org/carried")
    weights = [name for name in files if name.endswith(".safetensors")]
    assert len(weights) == 4 + ("image_encoder/model.safetensors" in files)
    assert all(files[name] == server.files(pushed)[name] for name in weights)


def test_a_controlnet_alone_with_a_base_by_id(server, clients, tmp_path, drawn_backs):
    pipe = tiny_pipeline()
    parts = {name: part for name, part in pipe.components.items() if name not in ("controlnet", "image_encoder")}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path / "base")
    server.put("some/base", on_disk(tmp_path / "base"))
    pipe.controlnet.save_pretrained(tmp_path / "net")
    (tmp_path / "net/training_config.yaml").write_text(yaml.safe_dump({"base_model": "some/base"}))
    clients.run(PUSH, tmp_path / "net", "org/net").checked()
    card = server.files("org/net")["README.md"].decode()
    assert ModelCard(card).data.base_model == "some/base"
    assert len(blocks(card)) == 2
    expected = pipe(drawn_backs[0], generator=torch.Generator().manual_seed(0), output_type="np").images[0]
    for made in fronts(clients, card, tmp_path):
        assert np.array_equal(made, expected)
    stock = """
    from diffusers import ControlNetModel
    net = ControlNetModel.from_pretrained("org/net")
    print(net.config["conditioning"], type(net).__name__)
    """
    assert clients.run(WITHOUT_PACKAGE + textwrap.dedent(stock)).checked().out == "rgb ControlNetModel\n"


def test_the_code_runs_only_where_it_is_trusted(clients, pushed):
    code = f"""
    from diffusers import DiffusionPipeline
    print(type(DiffusionPipeline.from_pretrained("{pushed}")).__name__)
    DiffusionPipeline.from_pretrained("{pushed}", custom_pipeline="{pushed}")
    """
    done = clients.run(WITHOUT_PACKAGE + textwrap.dedent(code))
    assert done.out.strip() == "StableDiffusionControlNetPipeline"
    assert "trust_remote_code=True" in done.err


def test_the_carried_code_is_the_packages_own():
    for name, text in remote_code.sources().items():
        compile(text, name, "exec")
        assert not re.search(r"^\s*from \.\.|^\s*from \.\w+\.|^\s*(from|import) backshan_diffusers", text, re.M), name
        for needed in re.findall(r"^\s*from \.(\w+) import", text, re.M):
            assert f"{needed}.py" in remote_code.sources()
    assert "hub.py" not in remote_code.sources()


def test_the_carried_code_finds_what_is_imported_late(tmp_path, monkeypatch):
    """An import inside a function names a file beside it too."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / f"{remote_code.ENTRY}.py").write_text("def f():\n    from ..models.late import a\n\n    return a\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/late.py").write_text("a = 1\n")
    monkeypatch.setattr(remote_code, "PACKAGE", tmp_path)
    files = remote_code.sources()
    assert set(files) == {"pipeline.py", "late.py"}
    assert "    from .late import a\n" in files["pipeline.py"]


# from the Hub


def test_offline_with_what_was_downloaded_before(server, clients, pushed, tiny_folder):
    warm = f"""
from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
from backshan_diffusers.hub import find_model, pull
BackToFrontPipeline.from_pretrained("{pushed}")
BackToFrontPipeline.from_pretrained("{pushed}", local_files_only=True)
BackshanControlNetModel.from_pretrained("{pushed}", subfolder="controlnet")
print(find_model("{pushed}").folder)
"""
    cold = """
try:
    pull("org/other")
except Exception as error:
    print(type(error).__name__, error)
"""
    clients.forget()
    folder = clients.run(warm).checked().out.strip()
    assert model_of(on_disk(Path(folder))) == on_disk(tiny_folder)
    asked = len(server.requests)
    offline = run_apart(server, clients.home, warm + cold, HF_HUB_OFFLINE="1").checked().out.splitlines()
    assert offline == [
        folder,
        "UnreachableHubError org/other was not downloaded before, or not as a whole, and HF_HUB_OFFLINE is set: unset"
        " it, or copy the folder here.",
    ]
    assert len(server.requests) == asked
    server.faults += [Fault("GET", "", "drop", 1000), Fault("HEAD", "", "drop", 1000)]
    found = f"from backshan_diffusers.hub import pull; print(hub.find_model('{pushed}').folder)"
    gone = clients.run(IMPATIENT + found + cold)
    assert gone.checked().out.startswith(f"{folder}\nUnreachableHubError the Hub does not answer as it should (")
    assert "what was downloaded before is used" in gone.err


PULL = IMPATIENT + "import sys; print(hub.pull(sys.argv[1]))"
WEIGHTS = "/cdn/"
"""Where large files are asked for, once it is known where they lie."""


@pytest.mark.parametrize("kind", ["500", "503", "cut"])
def test_a_download_that_fails_once_is_made_whole(server, clients, pushed, tiny_folder, kind):
    clients.forget()
    server.faults.append(Fault("GET", WEIGHTS, kind))
    done = clients.run(PULL, pushed).checked()
    assert server.faults[0].times == 0 and "what was downloaded before" not in done.err
    assert model_of(on_disk(Path(done.out.strip()))) == on_disk(tiny_folder)


def test_half_a_download_is_never_used(server, clients, pushed, tiny_folder):
    clients.forget()
    server.faults.append(Fault("GET", WEIGHTS, "503", 1000))
    for _ in range(2):  # the second time, configs lie in the cache
        done = clients.run(PULL, pushed)
        assert "UnreachableHubError: the Hub does not answer as it should (" in said(done.err)
        assert "what was downloaded before" not in done.err
    server.faults.clear()
    done = run_apart(server, clients.home, PULL, pushed, HF_HUB_OFFLINE="1")
    assert f"UnreachableHubError: {pushed} was not downloaded before, or not as a whole, and HF" in said(done.err)
    folder = Path(clients.run(PULL, pushed).checked().out.strip())
    assert model_of(on_disk(folder)) == on_disk(tiny_folder)


def test_while_a_newer_model_cannot_be_downloaded_the_whole_older_one_is_used(server, clients, model):
    clients.run(PUSH, model, "org/renewed").checked()
    older = clients.run(PULL, "org/renewed").checked().out
    tiny_pipeline(seed=1).save_pretrained(model)
    clients.run(PUSH, model, "org/renewed").checked()
    server.faults.append(Fault("GET", WEIGHTS, "503", 1000))
    done = clients.run(PULL, "org/renewed").checked()
    assert done.out == older and "what was downloaded before is used" in done.err
    assert "trying again" in done.err
    server.faults.clear()
    newer = Path(clients.run(PULL, "org/renewed").checked().out.strip())
    assert model_of(on_disk(newer)) == on_disk(model)


def test_what_is_missing_is_said(server, clients, pushed, tiny_folder):
    files = on_disk(tiny_folder)
    server.put("org/net-only", {"config.json": files["controlnet/config.json"]})
    half = server.put("org/half", files)
    half.pulls["refs/pr/1"] = half.branches["main"]
    server.faults.append(Fault("HEAD", "/org/half/.*/unet/config.json", "gone", 10))
    code = f"""
    from backshan_diffusers.hub import HubError, pull, pull_pairs, push
    for call in (
        lambda: pull("org/nothing"),
        lambda: pull("{pushed}", "no-such-branch"),
        lambda: pull("org/net-only"),
        lambda: pull("org/half", "refs/pr/1"),
        lambda: pull_pairs("org/nothing"),
        lambda: push("{tiny_folder}", "org/x", token="hf_wrong"),
    ):
        try:
            call()
        except HubError as error:
            print(type(error).__name__ + ": " + str(error))
    """
    said = clients.run(textwrap.dedent(code)).checked().out.splitlines()
    unknown = (
        "MissingRepoError: org/nothing does not exist, or is private and needs a token: check its name, or log in"
    )
    assert said == [
        f"{unknown} (hf auth login).",
        f"MissingRevisionError: {pushed} has no revision no-such-branch: give a branch, a tag or a commit of it.",
        "MissingFileError: org/net-only has no model_index.json: give a repository with a pipeline, or open its"
        " ControlNet with BackshanControlNetModel.from_pretrained.",
        "MissingFileError: org/half lacks unet/config.json: give a repository, a subfolder or a revision that has it.",
        f"{unknown} (hf auth login).",
        "HubError: this token may not do that with org/x: log in with one that may (hf auth login).",
    ]


@pytest.mark.parametrize("index", [b"[]", b"[1", b"\xff\xfe"])
def test_a_damaged_index_is_named(server, clients, tiny_folder, index):
    server.put("org/damaged", on_disk(tiny_folder) | {"model_index.json": index})
    done = clients.run("from backshan_diffusers.hub import pull; pull('org/damaged')")
    sentence = said(done.err)
    assert "HubError: the model_index.json of org/damaged is damaged (" in sentence
    assert sentence.endswith("): ask its owner to push it again, or give another revision.")


def test_a_push_says_why_it_cannot_be_made(server, clients, tiny_folder):
    offline = run_apart(server, clients.home, PUSH, tiny_folder, "org/off", HF_HUB_OFFLINE="1")
    assert said(offline.err).endswith(
        "UnreachableHubError: nothing can be pushed to org/off while HF_HUB_OFFLINE is set: unset it."
    )
    repo = server.put("org/tagged", {"a.txt": b""})
    repo.tags["v1"] = repo.branches["main"]
    push = "import sys; from backshan_diffusers.hub import push; push(sys.argv[1], 'org/tagged', revision='v1')"
    assert said(clients.run(push, tiny_folder).err).endswith(
        "MissingRevisionError: v1 is no branch of org/tagged: give a branch, not a tag or a commit."
    )


def test_a_file_is_not_pushed(tiny_folder):
    with pytest.raises(hub.HubError, match="model_index.json is a file: give the folder of a saved pipeline"):
        hub.push(tiny_folder / "model_index.json", "org/any")


MISSING = """
from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
for call in (
    lambda **kwargs: BackToFrontPipeline.from_pretrained("org/nothing", **kwargs),
    lambda **kwargs: BackToFrontPipeline.from_pretrained("org/tiny", revision="no-such-branch", **kwargs),
    lambda **kwargs: BackToFrontPipeline.from_pretrained("org/no-index", **kwargs),
    lambda **kwargs: BackToFrontPipeline.from_pretrained("org/no-config", **kwargs),
    lambda **kwargs: BackToFrontPipeline.load_config("org/nothing", **kwargs),
    lambda **kwargs: BackshanControlNetModel.from_pretrained("org/nothing", **kwargs),
    lambda **kwargs: BackshanControlNetModel.from_pretrained("org/tiny", revision="no-such-branch", **kwargs),
    lambda **kwargs: BackshanControlNetModel.from_pretrained("org/tiny", **kwargs),
    lambda **kwargs: BackshanControlNetModel.from_pretrained("org/no-weights", **kwargs),
    lambda **kwargs: BackshanControlNetModel.from_pretrained("no/such/folder", **kwargs),
):
    try:
        call(%s)
    except OSError as error:
        print(type(error).__name__, error)
"""
"""Asks for what is not there, and says what is raised."""


def test_from_pretrained_says_what_is_missing(clients, pushed, server, tiny_folder):
    files = on_disk(tiny_folder)
    assert pushed == "org/tiny"
    server.put("org/no-index", {name: content for name, content in files.items() if "/" in name})
    server.put("org/no-config", {name: content for name, content in files.items() if name != "unet/config.json"})
    server.put("org/no-weights", {"config.json": files["controlnet/config.json"]})
    clients.forget()
    nothing = (
        "MissingRepoError org/nothing does not exist, or is private and needs a token: check its name, or log in (hf"
        " auth login)."
    )
    no_branch = "MissingRevisionError org/tiny has no revision no-such-branch: give a branch, a tag or a commit of it."
    lacks = "MissingFileError org/{} lacks {}: give a repository, a subfolder or a revision that has it."
    no_folder = "HubError there is no folder no/such/folder, and it is no id of a repository: check the name."
    assert clients.run(MISSING % "").checked().out.splitlines() == [
        nothing,
        no_branch,
        lacks.format("no-index", "model_index.json"),
        "MissingFileError org/no-config holds no whole pipeline (unet/config.json is missing): give another revision,"
        " pass that component, or ask its owner to push it again.",
        nothing,
        nothing,
        no_branch,
        lacks.format("tiny", "config.json"),
        lacks.format("no-weights", "diffusion_pytorch_model.safetensors"),
        no_folder,
    ]
    names = ["nothing", "tiny", "no-index", "no-config", "nothing", "nothing", "tiny", "tiny", "no-weights"]
    clients.forget()
    cold = "UnreachableHubError org/{} was not downloaded before, or not as a whole, and {}, or copy the folder here."
    local = cold.format("{}", "local_files_only is set: leave it out")
    said = clients.run(MISSING % "local_files_only=True").checked().out.splitlines()
    assert said == [*map(local.format, names), no_folder]
    offline = cold.format("{}", "HF_HUB_OFFLINE is set: unset it")
    said = run_apart(server, clients.home, MISSING % "", HF_HUB_OFFLINE="1").checked().out.splitlines()
    assert said == [*map(offline.format, names), no_folder]


def test_the_carried_code_leaves_what_diffusers_says(clients, pushed):
    """There is no other file that could put it in words, where this package is not installed."""
    code = f"""
    from diffusers import DiffusionPipeline
    pipe = DiffusionPipeline.from_pretrained("{pushed}", custom_pipeline="{pushed}", trust_remote_code=True)
    type(pipe).from_pretrained("org/nothing")
    """
    assert said(clients.run(WITHOUT_PACKAGE + textwrap.dedent(code)).err).startswith("OSError: Cannot load model org/")


def test_pickles_are_refused_before_they_are_downloaded(server, clients, tiny_folder):
    files = on_disk(tiny_folder)
    for part in ("unet", "controlnet"):
        files[f"{part}/diffusion_pytorch_model.bin"] = files.pop(f"{part}/diffusion_pytorch_model.safetensors")
    server.put("org/pickles", files)
    code = """
    from backshan_diffusers import BackshanControlNetModel, BackToFrontPipeline
    from backshan_diffusers.hub import pull
    for call in (
        lambda: pull("org/pickles"),
        lambda: BackToFrontPipeline.from_pretrained("org/pickles"),
        lambda: BackToFrontPipeline.from_pretrained("org/pickles", unet=None),
        lambda: BackshanControlNetModel.from_pretrained("org/pickles", subfolder="controlnet"),
    ):
        try:
            call()
        except OSError as error:
            print(type(error).__name__, error)
    """
    clients.forget()
    before = server.asked("GET", "/cdn/")
    refused = (
        "HubError org/pickles has the weights of {} only as a pickle, which could run any code: ask its owner for"
    )
    assert clients.run(textwrap.dedent(code)).checked().out.splitlines() == [
        f"{refused} safetensors.".format("controlnet"),
        f"{refused} safetensors.".format("unet"),
        f"{refused} safetensors.".format("controlnet"),
        "MissingFileError org/pickles lacks controlnet/diffusion_pytorch_model.safetensors: give a repository, a"
        " subfolder or a revision that has it.",
    ]
    assert server.asked("GET", "/cdn/") == before


def test_a_variant_that_is_missing_and_one_that_is_not_asked_for(server, clients, tiny_folder, tmp_path):
    BackToFrontPipeline.from_pretrained(tiny_folder).save_pretrained(tmp_path / "half", variant="fp16")
    plain, half = on_disk(tiny_folder), on_disk(tmp_path / "half")
    server.put("org/plain", plain)
    server.put("org/half-alone", half)
    server.put("org/plain-and-half", plain | half)
    code = """
    import sys
    from backshan_diffusers import BackToFrontPipeline
    for name, variant in zip(sys.argv[1::2], sys.argv[2::2]):
        try:
            print(type(BackToFrontPipeline.from_pretrained(f"org/{name}", variant=variant or None)).__name__)
        except OSError as error:
            print(type(error).__name__, error)
    """
    asked = ["plain", "fp16", "half-alone", "", "half-alone", "bf16", "plain-and-half", "bf16", "half-alone", "fp16"]
    clients.forget()
    assert clients.run(textwrap.dedent(code), *asked).checked().out.splitlines() == [
        "MissingFileError org/plain has no weights in the variant fp16: leave it out.",
        "MissingFileError org/half-alone holds its weights only in the variant fp16: give variant='fp16'.",
        "MissingFileError org/half-alone has no weights in the variant bf16: give variant='fp16'.",
        "MissingFileError org/plain-and-half has no weights in the variant bf16: leave it out, or give"
        " variant='fp16'.",
        "BackToFrontPipeline",
    ]


def test_what_is_nested_too_deeply_is_damaged(server, clients, tiny_folder):
    files, deep = on_disk(tiny_folder), b"[" * 200_000
    server.put("org/deep-index", files | {"model_index.json": deep})
    server.put("org/deep-config", files | {"unet/config.json": deep})
    code = """
    from backshan_diffusers import BackToFrontPipeline
    from backshan_diffusers.hub import pull
    for call in (pull, BackToFrontPipeline.from_pretrained):
        for name in ("org/deep-index", "org/deep-config"):
            try:
                print(call(name).name)
            except OSError as error:
                print(type(error).__name__, error)
    """
    clients.forget()
    index = (
        "HubError the model_index.json of org/deep-index is damaged (it is nested too deeply): ask its owner to push"
        " it again, or give another revision."
    )
    pulled, downloaded, opened, loaded = clients.run(textwrap.dedent(code)).checked().out.splitlines()
    assert pulled == opened == index
    assert downloaded == server.repo("org/deep-config").find("main").oid  # a folder is judged when it is opened
    assert loaded == (
        "MissingFileError org/deep-config holds no whole pipeline (unet/config.json is damaged (it is nested too"
        " deeply)): give another revision, pass that component, or ask its owner to push it again."
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: hub.push(folder, "org/x", revision=""),
        lambda _: hub.pull("org/x", revision=""),
        lambda _: hub.push_pairs("org/x", "wardrobe", size=64, splits={"train": 1}, license="mit", revision=""),
        lambda _: hub.pull_pairs("org/x", revision=""),
    ],
)
def test_an_empty_revision_is_refused(call, tiny_folder):
    with pytest.raises(hub.HubError, match="^the revision is empty: give a branch, or leave it out.$"):
        call(tiny_folder)


def test_a_gated_repository(server, clients, tiny_folder):
    """Everybody sees what it holds, and only those who were let in get it."""
    server.put("org/gated", on_disk(tiny_folder)).is_gated = True
    sentence = "org/gated is gated: ask for access on its page on the Hub, and log in (hf auth login)."
    clients.forget()
    for token in (TOKEN, ""):
        refused = clients.run("from backshan_diffusers.hub import pull; pull('org/gated')", HF_TOKEN=token)
        assert said(refused.err).endswith(f"MissingRepoError: {sentence}")
    done = command(clients, "generate", "back.png", "--model", "org/gated")
    assert (done.code, done.err) == (2, f"backshan: {sentence}\n")


def test_brackets_in_a_name_are_no_pattern(server, clients, tiny_folder):
    files = on_disk(tiny_folder)
    odd = "unet/part[1].safetensors"
    files[odd] = files["unet/diffusion_pytorch_model.safetensors"]
    server.put("org/brackets", files)
    folder = clients.run("from backshan_diffusers.hub import pull; print(pull('org/brackets'))").checked().out.strip()
    assert on_disk(Path(folder)) == files


def test_names_from_outside_stay_inside(server, clients, tiny_folder):
    files = on_disk(tiny_folder)
    index = json.loads(files["model_index.json"]) | {"../unet": ["diffusers", "UNet2DConditionModel"]}
    files["model_index.json"] = json.dumps(index).encode()
    outside = ("../evil.json", "unet/../../../evil.json", "/evil.json", "../unet/evil.json", "unet/..\\evil.json")
    server.put("org/evil", {**files, **dict.fromkeys(outside, b"{}")})
    clients.forget()
    done = clients.run("from backshan_diffusers.hub import pull; print(pull('org/evil'))").checked()
    assert set(on_disk(Path(done.out.strip()))) == set(on_disk(tiny_folder))
    assert list(clients.folder.parent.rglob("*evil.json")) == []


def test_a_download_that_breaks_off_goes_on(server, clients, tmp_path):
    files = on_disk_of_large(tmp_path)
    server.put("org/large", files)
    clients.forget()
    server.faults.append(Fault("GET", "/cdn/", "cut"))
    small_pieces = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 10_000\n"
    pull = "from backshan_diffusers.hub import pull; print(pull('org/large'))"
    folder = clients.run(small_pieces + pull).checked().out.strip()
    assert on_disk(Path(folder)) == files
    assert len(server.ranges) == 1


def on_disk_of_large(tmp_path: Path) -> dict[str, bytes]:
    tiny_pipeline(seed=9).save_pretrained(tmp_path / "large")
    return on_disk(tmp_path / "large")


def test_a_download_that_was_killed_goes_on(server, clients, tmp_path):
    files = on_disk_of_large(tmp_path)
    server.put("org/large-too", files)
    clients.forget()
    server.faults += [Fault("GET", "/cdn/", "none", 2), Fault("GET", "/cdn/", "stall", 9)]
    pull = "from backshan_diffusers.hub import pull; print(pull('org/large-too'))"
    number = clients.start(pull)
    wait_until(lambda: server.faults[1].times < 9)
    clients.kill(number)
    server.faults.clear()
    before = server.asked("GET", "/cdn/")
    folder = clients.run(pull).checked().out.strip()
    assert on_disk(Path(folder)) == files
    assert server.asked("GET", "/cdn/") - before < 4


# the command


def command(clients, *arguments, before: str = ""):
    return clients.run(
        f"{before}\nimport sys; from backshan_diffusers import cli; sys.exit(cli.main(sys.argv[1:]))", *arguments
    )


def test_the_command_pushes(server, clients, tiny_folder):
    done = command(
        clients, "push", tiny_folder, "org/by-command", "--private", "--revision", "dev", "--license", "mit"
    )
    assert done.code == 0
    head = server.repo("org/by-command").branches["dev"]
    assert done.out == f"org/by-command holds {tiny_folder}: {server.url}/org/by-command/commit/{head}\n"
    assert server.repo("org/by-command").private
    assert list(server.files("org/by-command")) == [".gitattributes"]
    assert ModelCard(server.files("org/by-command", "dev")["README.md"].decode()).data.license == "mit"
    assert "backshan: " not in done.err


def test_what_a_push_says_stands_below_the_bars_of_what_failed(server, clients, model):
    tiny_pipeline(seed=51).unet.save_pretrained(model / "unet")  # which the server has not
    server.faults.append(Fault("PUT", "/lfs", "403", 99))
    done = command(clients, "push", model, "org/refused")
    assert done.code == 2 and "%|" in done.err
    assert said(done.err).startswith("backshan: this token may not do that with org/refused")


NEEDED = re.compile("org/quiet|^/api/repos/create$|^/api/validate-yaml$|^/lfs[/-]")
"""What a push to `org/quiet` asks for."""


def test_the_command_asks_the_hub_for_nothing_else(server, clients, tiny_folder):
    """huggingface_hub would ask it for a list of programs that might be using it."""
    code = "import sys; from backshan_diffusers import cli; sys.exit(cli.main(['push', sys.argv[1], 'org/quiet']))"
    before = len(server.requests)
    run_apart(server, clients.folder / "quiet", code, tiny_folder, HF_HUB_DISABLE_TELEMETRY=None).checked()
    asked = [path for _, path, _ in server.requests[before:]]
    assert asked and not [path for path in asked if not NEEDED.search(path)]


def test_the_training_script_asks_the_hub_for_nothing_else(server, clients, script, trained):
    before = len(server.requests)
    push = [*script, trained, "--push_to_hub", "org/quiet-run"]
    run_apart(server, clients.folder / "quiet-run", TRAIN, *push, HF_HUB_DISABLE_TELEMETRY=None).checked()
    asked = [path for _, path, _ in server.requests[before:]]
    assert asked and not [path for path in asked if not NEEDED.search(path)]


def test_pushing_and_pulling_need_no_torch(server, clients, tiny_folder):
    """It takes seconds to import, and nearly a GB of memory."""
    code = """
import sys
from backshan_diffusers import cli, hub
assert cli.main(["push", sys.argv[1], "org/light"]) == 0
assert hub.find_model("org/light").folder == hub.pull("org/light")
print(*sorted({"torch", "diffusers", "transformers"} & set(sys.modules)))
"""
    done = run_apart(server, clients.home, code, tiny_folder).checked()
    assert done.out.splitlines()[1:] == [""]
    assert model_of(server.files("org/light")) == on_disk(tiny_folder)


def test_the_command_says_why_it_cannot(server, clients, tiny_folder, tmp_path):
    done = command(clients, "push", tmp_path, "org/no")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"backshan: {tmp_path} has no model_index.json, and no config.json")
    done = command(clients, "push", tmp_path / "none", "org/no")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"backshan: the folder {tmp_path / 'none'} does not exist: give the folder of a saved")
    assert ("models", "org/no") not in server.repos
    done = command(clients, "push", tiny_folder, "org/unlicensed", "--license", "mitt")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        'backshan: the Hub refuses the card of org/unlicensed: "license" must be one of apache-2.0, mit, other.\n'
    )
    assert ("models", "org/unlicensed") not in server.repos
    server.faults.append(Fault("POST", "/repos/create", "403", 100))
    done = command(clients, "push", tiny_folder, "org/no")
    assert (done.code, done.out) == (2, "")
    assert done.err == "backshan: this token may not do that with org/no: log in with one that may (hf auth login).\n"
    server.faults[:] = [Fault("POST", "/repos/create", "500", 100)]
    done = command(clients, "push", tiny_folder, "org/no", before=IMPATIENT)
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1].startswith("backshan: the Hub does not answer as it should (")


def test_the_command_generates_with_a_repository_and_says_so(server, clients, pushed, tiny_folder):
    head = server.repo(pushed).branches["main"]
    done = command(clients, "generate", "back.png", "--model", pushed, "-o", "of-hub.png")
    assert done.code == 0
    assert f"backshan: the model is the Hub repository {pushed} at {head[:7]}.\n" in done.err
    assert "log in for more" not in done.err
    done = command(clients, "generate", "back.png", "--model", tiny_folder, "-o", "of-folder.png")
    assert (done.code, done.err) == (0, "")
    pictures = [np.asarray(PIL.Image.open(clients.folder / name)) for name in ("of-hub.png", "of-folder.png")]
    assert np.array_equal(*pictures)
    clients.forget()
    as_in_a_terminal = "import os; os.environ['TQDM_POSITION'] = '-1'"  # what makes huggingface_hub show bars
    done = command(clients, "generate", "back.png", "--model", pushed, "-o", "with-bar.png", before=as_in_a_terminal)
    assert re.search(r"100%\|", done.err)
    done = command(clients, "generate", "back.png", "--model", "org/nothing")
    assert done.code == 2
    assert "backshan: org/nothing does not exist, or is private and needs a token" in done.err


def test_the_command_exports_a_repository_and_names_it(server, clients, pushed, tiny_folder):
    """The file says which model it holds, and its licence, as the card tells it."""
    clients.forget()
    any_shape = (
        "from backshan_diffusers.export import original_layout; original_layout.check_loadable = lambda _: None"
    )
    done = command(clients, "export", pushed, "-o", "t.safetensors", "--format", "controlnet", before=any_shape)
    assert done.code == 0, done.err
    assert f"backshan: the model is the Hub repository {pushed} at " in done.err
    with safe_open(clients.folder / "t.safetensors", "np") as file:
        assert (file.metadata()["model"], file.metadata()["license"]) == (pushed, "other")


def test_the_order_in_which_a_name_is_looked_for(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub.find_model("mini").origin == "the embedded mini"
    (tmp_path / "mini").mkdir()
    assert hub.find_model("mini").origin == "the embedded mini"
    shutil.copytree(tiny_folder, tmp_path / "mini", dirs_exist_ok=True)
    assert hub.find_model("mini").origin == "the folder mini"
    assert hub.find_model("mini").is_choice
    shutil.copytree(tiny_folder, tmp_path / "org/repo")
    assert hub.find_model("org/repo") == hub.Model(Path("org/repo"), "the folder org/repo", True)
    assert not hub.find_model(str(tmp_path / "org/repo")).is_choice


def test_the_page_about_the_hub(server, clients, tmp_path, tiny_folder, datasets_cache):
    """Its code runs from top to bottom, against this Hub."""
    page = Path(__file__).parents[1] / "docs/hub.md"
    found = re.findall(r"^<!-- not run: [^\n]+ -->\n```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    shutil.copytree(tiny_folder, clients.folder / "runs/mini/joint/pipeline")
    (clients.folder / "pairs/train").mkdir(parents=True)
    for row in load_pairs("wardrobe", split="train", size=64, count=2):
        for view in ("back", "front"):
            row[view].save(clients.folder / f"pairs/train/{row['item_id']}_{view}.png")
    server.put("owner/base-model", on_disk(tiny_folder))
    for language, code in found:
        if language == "bash":
            for line in code.splitlines():
                assert command(clients, *line.split()[1:]).code == 0
        else:
            clients.forget()
            clients.run(("" if "backshan_diffusers" in code else WITHOUT_PACKAGE) + code).checked()
    assert len(found) == 7
    assert server.repo("owner/my-model").private
    assert set(server.repo("owner/my-model").branches) == {"main", "dev"}


# pairs


def rows_equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name])
        if isinstance(first[name], PIL.Image.Image)
        else first[name] == second[name]
        for name in first
    )


def test_pairs_are_pushed_and_read_back(server, clients, datasets_cache):
    code = """
    from backshan_diffusers.hub import pull_pairs, push_pairs
    for _ in range(2):
        push_pairs("org/pairs", "wardrobe", size=64, splits={"train": 10, "validation": 3}, license="apache-2.0")
    print(pull_pairs("org/pairs"))
    """
    folder = clients.run(textwrap.dedent(code)).checked().out.split()[-1]
    for split, count in (("train", 10), ("validation", 3)):
        own = load_pairs("wardrobe", split=split, size=64, count=count)
        back = load_pairs("folder", path=folder, split=split, size=64)
        assert len(back) == count
        assert all(map(rows_equal, own, back))
    repo = server.repo("org/pairs", "datasets")
    assert len(repo.history()) == 2
    files = server.files("org/pairs", kind="datasets")
    assert sorted(files) == [
        ".gitattributes",
        "README.md",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    ]
    card = DatasetCard(files["README.md"].decode())
    assert (card.data.license, card.data.task_categories) == ("apache-2.0", ["image-to-image"])
    assert "| train | 10 | 9 |" in card.text
    assert "`front_face`" in card.text
    assert "there is no person behind them" in card.text
    clients.forget()
    clients.run(blocks(card.text)[0] + "\nassert len(pairs) == 10 and pairs[0]['front_face'] is not None").checked()


def test_pairs_that_are_pushed_again_replace_those_before(server, clients, datasets_cache):
    """A folder that holds tables of both would mix them."""
    code = """
    from backshan_diffusers.data import tables
    from backshan_diffusers.hub import pull_pairs, push_pairs
    for size, splits in ((20e3, {"train": 12, "test": 3}), (1e9, {"train": 2})):
        tables.TABLE_BYTES = size
        push_pairs("org/again", "wardrobe", size=64, splits=splits, license="apache-2.0", revision="second")
    print(pull_pairs("org/again", "second"))
    """
    folder = clients.run(textwrap.dedent(code)).checked().out.split()[-1]
    repo = server.repo("org/again", "datasets")
    newest, before = repo.history("second")[:2]
    assert [name for name in newest.files if name.endswith(".parquet")] == ["data/train-00000-of-00001.parquet"]
    assert len([name for name in before.files if name.endswith(".parquet")]) > 2
    assert not any(name.endswith(".parquet") for name in repo.history()[0].files)
    assert len(load_pairs("folder", path=folder, split="train", size=64)) == 2


def test_no_split_is_no_push():
    with pytest.raises(ValueError, match="there is no split to push: name some"):
        hub.push_pairs("org/none", "wardrobe", size=64, splits={}, license="mit")


def test_pairs_of_ones_own_are_pushed(server, clients, tmp_path, drawn_backs, datasets_cache):
    folder = tmp_path / "pairs/train"
    folder.mkdir(parents=True)
    for number in range(3):
        for view in ("back", "front"):
            picture = PIL.Image.effect_noise((40 + number, 60), 90 if view == "back" else 50).convert("RGB")
            picture.save(folder / f"coat-{number}_{view}.png")
    (folder / "metadata.csv").write_text("item_id,group_id,colour\ncoat-0,a,red\ncoat-1,a,blue\n")
    code = """
    import sys
    from backshan_diffusers.hub import pull_pairs, push_pairs
    pairs = {"path": sys.argv[1], "size": 48, "splits": {"train": None}}
    push_pairs("org/own-pairs", "folder", **pairs, license="other", private=True, token=sys.argv[2])
    print(pull_pairs("org/own-pairs", token=sys.argv[2]))
    """
    done = clients.run(textwrap.dedent(code), tmp_path / "pairs", TOKEN, HF_TOKEN="")
    out = done.checked().out.split()[-1]
    own, back = (load_pairs("folder", path=path, split="train", size=48) for path in (tmp_path / "pairs", out))
    assert len(back) == 3
    assert all(map(rows_equal, own, back))
    assert server.repo("org/own-pairs", "datasets").private
    card = server.files("org/own-pairs", kind="datasets")["README.md"].decode()
    assert "Pictures of people are personal" in card
    assert card.endswith("## Licence\n\nThe pairs: other.") and "weights" not in card
    missing = clients.run("from backshan_diffusers.hub import pull_pairs; pull_pairs('org/no-pairs')")
    assert "MissingRepoError: org/no-pairs does not exist" in said(missing.err)


def test_a_hub_to_try_things_with(tmp_path):
    command = [sys.executable, Path(hub_server.__file__), "--port"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as of what a shell begins in the background
    started = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        variables = dict(each.split("=") for each in started.stdout.readline().split()[1:])
        url, home = variables["HF_ENDPOINT"], Path(variables["HF_HOME"])
        request = urllib.request.Request(f"{url}/api/whoami-v2", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["name"] == "me"
        assert (variables["HF_TOKEN"], home.parent.is_dir()) == (TOKEN, True)
        second = subprocess.run([*command, url.rpartition(":")[2]], capture_output=True, text=True, check=False)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)
        assert second.stderr.endswith("give another --port.\n")
        started.send_signal(signal.SIGINT)
        assert started.wait(60) == 0
    finally:
        started.kill()
        started.communicate()
    assert not home.parent.exists()


def test_the_environment_of_a_client_has_nothing_of_this_process(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert environment(server, tmp_path)["HF_ENDPOINT"] == server.url
    assert "HF_HUB_OFFLINE" not in environment(server, tmp_path)
