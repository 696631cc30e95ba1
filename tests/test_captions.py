"""What a prompt says of one pair: the rules, and that each pair trains on its own words."""

import pytest
import torch
from tiny import pair_arrays, tiny_config, tiny_pipeline

from backshan_diffusers.data import load_pairs
from backshan_diffusers.training.batches import StepSampler
from backshan_diffusers.training.captions import caption, read_rule
from backshan_diffusers.training.config import ConfigError
from backshan_diffusers.training.run import TrainingRun

RULES = ("open=true: open over {inner_color}", "beard: {beard} beard", "top=v-neck t-shirt: v-neck")


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"open": True, "inner_color": "sky blue", "beard": "full"}, "Front, open over sky blue, full beard"),
        ({"open": "TRUE", "inner_color": "white", "beard": "none"}, "Front, open over white"),
        ({"open": False, "inner_color": "white", "beard": "", "top": "V-neck T-shirt"}, "Front, v-neck"),
        ({"open": True}, "Front"),
        ({"open": True, "inner_color": None}, "Front"),
        ({"open": True, "inner_color": 7}, "Front, open over 7"),
        ({"beard": False, "top": "v-neck"}, "Front"),
        ({}, "Front"),
    ],
)
def test_a_caption_says_what_the_rules_have_words_for(attributes, said):
    assert caption("Front", [*map(read_rule, RULES)], attributes) == said


def test_a_rule_may_be_written_with_or_without_spaces():
    rule = read_rule("top=v-neck t-shirt: neck: {top_color}")
    assert rule == read_rule("  top =  v-neck t-shirt :  neck: {top_color}  ")
    assert (rule.attribute, rule.value, rule.words) == ("top", "v-neck t-shirt", "neck: {top_color}")
    assert rule.attributes == {"top", "top_color"}
    assert read_rule("Top = V-neck: v").applies({"Top": "v-NECK"}) and not read_rule("1=2: v").applies({"1": 2.0})
    assert read_rule("skin tone: {hair-style}").attributes == {"skin tone", "hair-style"}
    assert read_rule("glasses:glasses").value is None


@pytest.mark.parametrize(
    "text", ["", "glasses", "glasses=true", "glasses: ", ": glasses", "glasses=: glasses", "{a}: b"]
)
def test_a_rule_of_another_form_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=f"^captions has {text!r}: give 'ATTRIBUTE=VALUE: WORDS', as in "):
        tiny_config(tmp_path, captions=(text,))


def run_and_pairs(folder, **changes):
    settings = tiny_config(folder, train_pairs=32, captions=RULES, **changes)
    run = TrainingRun(settings)
    rows, _ = run.pairs(64)
    return run, settings, run._cached(rows)


@pytest.mark.parametrize("stage", ["prior", "controlnet", "joint"])
def test_each_pair_trains_on_its_own_words(tmp_path, stage):
    run, settings, pairs = run_and_pairs(tmp_path, prompt="Front", prompt_dropout=0.0, batch_size=16)
    pipeline = tiny_pipeline(default_prompt="Front")
    batch = run.build_stage(stage, pipeline, pairs)[1](0, StepSampler(0, stage))
    rows = load_pairs("wardrobe", split="train", size=64, count=32)
    rules = settings.caption_rules()
    said = [caption("Front", rules, rows[int(item)]["attributes"]) for item in batch["items"]]
    assert len({*said}) > 3 and "Front" in said
    expected = pipeline.encode_prompt(said, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(batch["prompts"], expected, rtol=1e-5, atol=1e-6)


def test_the_empty_prompt_takes_the_place_of_a_share_of_them(tmp_path):
    run, _, pairs = run_and_pairs(tmp_path, prompt_dropout=0.5, batch_size=32)
    pipeline = tiny_pipeline()
    batch = run.build_stage("controlnet", pipeline, pairs)[1](0, StepSampler(0, "controlnet"))
    empty = pipeline.encode_prompt("", torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]
    dropped = (batch["prompts"] - empty).abs().amax(dim=(1, 2)) < 1e-6
    assert 8 <= int(dropped.sum()) <= 24


def test_attributes_that_no_pair_has_are_refused_before_anything_is_trained(tmp_path):
    rules = ("hat=true: hat of {hat_color}", "glasses=true: glasses")
    with pytest.raises(ConfigError, match="^captions names hat, hat_color, which no pair has among its attributes:"):
        TrainingRun(tiny_config(tmp_path, captions=rules)).run()
    assert not (tmp_path / "vae").exists()


def test_one_pair_that_has_the_attribute_is_enough(tmp_path, monkeypatch):
    run, _, pairs = run_and_pairs(tmp_path)
    some = [{}, {"open": True, "inner_color": "red"}, {"beard": "none", "top": "shirt"}]
    monkeypatch.setattr("backshan_diffusers.training.run.read_attributes", lambda *_: some)
    run._check_captions(pairs)


def test_a_rule_that_no_pair_fits_is_told(tmp_path, caplog):
    run, _, pairs = run_and_pairs(tmp_path)
    run.config = tiny_config(tmp_path, captions=("top=cardigen: cardigan", "glasses=true: glasses"))
    run._check_captions(pairs)
    assert [record.getMessage() for record in caplog.records] == [
        "captions has 'top=cardigen: cardigan', and no pair is like that: nothing is ever said by it."
    ]


def test_prompts_come_in_the_order_of_the_pairs(tmp_path, monkeypatch):
    """Not in that of a set, which differs from process to process."""
    run, settings, pairs = run_and_pairs(tmp_path)
    encoded = []
    monkeypatch.setattr(
        "backshan_diffusers.training.building.cache_prompts",
        lambda texts, *_: encoded.extend(texts) or torch.zeros(len(texts), 2, 2),
    )
    run._captions(tiny_pipeline(default_prompt="Front"), pairs)
    rows = load_pairs("wardrobe", split="train", size=64, count=32)
    said = [caption("Front", settings.caption_rules(), row["attributes"]) for row in rows]
    assert encoded == list(dict.fromkeys(["Front", "", *said]))


def test_an_empty_prompt_leaves_no_comma():
    assert caption("", [read_rule("glasses=true: glasses")], {"glasses": True}) == "glasses"


def test_without_rules_all_have_the_prompt_of_the_model(tmp_path):
    settings = tiny_config(tmp_path, prompt_dropout=0.0)
    (tmp_path / "cache").mkdir()
    pipeline = tiny_pipeline(default_prompt="From the front")
    _, make_batch = TrainingRun(settings).build_stage("controlnet", pipeline, pair_arrays())
    batch = make_batch(0, StepSampler(0, "controlnet"))
    expected = pipeline.encode_prompt("From the front", torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(batch["prompts"], expected.expand_as(batch["prompts"]), rtol=1e-5, atol=1e-6)
