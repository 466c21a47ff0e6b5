"""The bodies of requests and answers; OpenAPI is made from them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_SIMULATIONS = 800
MAX_BATCH = 256

SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
NumSimulations = Annotated[int, Field(ge=0, le=MAX_SIMULATIONS, strict=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ActRequest(_Strict):
    """One observation to act upon."""

    observation: Any = Field(
        description='Nested lists of numbers, {"png": base64} or {"npy": base64}: the newest frame, or a whole stack '
        'of frames, oldest first. With an action mask: {"observations": ..., "action_mask": [...]}.',
    )
    legal_actions: list[Any] | None = Field(
        None, max_length=65536, description="Numbers of the legal actions, or one true or false per action."
    )
    num_simulations: NumSimulations | None = Field(None, description="0: the policy head alone, without a search.")
    session_id: SessionId | None = Field(None, description="A session keeps the last frames: send one frame per step.")
    reset: bool = Field(False, description="This frame is an episode's first.")


class ActResponse(BaseModel):
    """What to do, and why."""

    action: int | list[int | float] = Field(
        description="Its number; or, where actions are sampled, its components as in the action_space of /v1/metadata.",
    )
    value: float = Field(description="The search's value of the observation.")
    visit_policy: list[float] = Field(description="The search's policy; sums to 1.")
    candidates: list[list[int | float]] | None = Field(
        None, description="Where actions are sampled: those that visit_policy is about."
    )
    num_simulations: int
    model: str = Field(description="Which weights answered: changes when the checkpoint is exchanged.")


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


class ActBatchRequest(_Strict):
    """Several requests that share searches."""

    requests: list[Any] = Field(min_length=1, max_length=MAX_BATCH, description="Each as for /v1/act.")


class ActBatchResponse(BaseModel):
    """In the order of the requests; one that is wrong does not spoil the others."""

    answers: list[ActResponse | Problem]


class GameRequest(_Strict):
    """A game for the page."""

    seed: int | None = Field(None, ge=0, le=2**31 - 1, strict=True)
    num_simulations: NumSimulations | None = None


class StepRequest(_Strict):
    """One step of a game."""

    action: int | None = Field(None, ge=0, le=2**31 - 1, strict=True, description="None: what the search chose.")
    num_simulations: NumSimulations | None = Field(None, description="Of the search after the step.")


class SearchRequest(_Strict):
    """The same position again."""

    num_simulations: NumSimulations | None = None
