"""From the picture of a back to the picture of the front."""

from .pipeline_back_to_front import BackToFrontPipeline, NotFiniteError
from .pipeline_output import BackToFrontPipelineOutput

__all__ = ["BackToFrontPipeline", "BackToFrontPipelineOutput", "NotFiniteError"]
