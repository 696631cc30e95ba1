"""Which pipelines are averaged; tests/test_embedding.py has the mean itself."""

import pytest
from diffusers import LCMScheduler
from tiny import tiny_pipeline

from backshan_diffusers import BackToFrontPipeline
from backshan_diffusers.training.soup import average


def embedded_before() -> BackToFrontPipeline:
    """A tiny pipeline as an earlier one that was embedded: rounded, and with other defaults of a call."""
    pipeline = tiny_pipeline(default_prompt="Another one", default_num_inference_steps=2)
    for model in (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.controlnet):
        model.half().float()
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


OTHER_SETTINGS = {"vae": {"scaling_factor": 2.0}, "unet": {"act_fn": "gelu"}, "controlnet": {"mirror": False}}


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet", "controlnet"])
def test_only_what_goes_with_the_same_pictures_is_averaged(part):
    ours, theirs = tiny_pipeline(), embedded_before()
    average(ours, theirs)
    other = getattr(theirs, part)
    if part in OTHER_SETTINGS:
        other.register_to_config(**OTHER_SETTINGS[part])
    else:
        other.config.hidden_act = "gelu"
    refused = f"the {part} of the pipeline to average with is another one: name one that the run went on from."
    with pytest.raises(ValueError, match=refused):
        average(ours, theirs)
    setattr(theirs, part, getattr(tiny_pipeline(), part))
    weight = next(getattr(theirs, part).parameters())
    weight.data = weight.data[:1]
    with pytest.raises(ValueError, match=refused):
        average(ours, theirs)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_what_stays_has_to_be_the_same(part):
    ours, theirs = tiny_pipeline(), embedded_before()
    next(getattr(theirs, part).parameters()).data += 1
    with pytest.raises(ValueError, match=f"the {part} of the pipeline to average with is another one"):
        average(ours, theirs)


@pytest.mark.parametrize("changes", [{"prediction_type": "epsilon"}, {"beta_end": 0.02}])
def test_what_was_made_for_another_schedule_is_not_averaged(changes):
    ours, theirs = tiny_pipeline(), embedded_before()
    for pipeline, changed in ((ours, {}), (theirs, changes)):
        config = {**pipeline.scheduler.config, "rescale_betas_zero_snr": False, **changed}
        pipeline.scheduler = type(pipeline.scheduler).from_config(config)
    with pytest.raises(ValueError, match="the scheduler of the pipeline to average with is another one"):
        average(ours, theirs)
