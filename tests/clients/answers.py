"""What the scripts have models fill in: an object with an end, and any object."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """What the animal is."""

    # Else an object may have further properties, and a model that knows no JSON adds them for ever.
    model_config = ConfigDict(extra="forbid")

    animal: Literal["fox", "owl"]
    legs: Annotated[int, Field(ge=0, le=8)]


class Whatever(BaseModel):
    """Any object: JSON mode alone holds an answer to no schema."""

    model_config = ConfigDict(extra="allow")
