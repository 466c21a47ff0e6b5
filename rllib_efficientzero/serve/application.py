"""The HTTP application: FastAPI over a `Batcher`. It runs under uvicorn alone as well as under Ray Serve."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fastapi
import gymnasium as gym
import numpy as np
import pydantic
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from rllib_efficientzero.playing.environment import PlayError
from rllib_efficientzero.playing.frame_stack import FrameStack
from rllib_efficientzero.serve.batcher import Batcher, OverloadedError, all_or_none
from rllib_efficientzero.serve.border import Border
from rllib_efficientzero.serve.games import Game
from rllib_efficientzero.serve.observations import BadInputError, decode_legal_actions, decode_observation
from rllib_efficientzero.serve.schemas import (
    MAX_BATCH,
    MAX_SIMULATIONS,
    ActBatchRequest,
    ActBatchResponse,
    ActRequest,
    ActResponse,
    GameRequest,
    Problem,
    SearchRequest,
    StepRequest,
)
from rllib_efficientzero.serve.service import Answer, PolicyFacts, Query
from rllib_efficientzero.serve.sessions import Session, SessionStore

logger = logging.getLogger(__name__)

PAGE = pathlib.Path(__file__).with_name("page")
MAX_TOLD_PROBLEMS = 5
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem} for code in (400, 401, 404, 408, 413, 415, 422, 503)
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of what one server accepts."""

    max_body_bytes: int = 8 << 20
    body_timeout_s: float = 10.0
    max_pending: int = 512
    """Requests being answered at a time; further ones get 503."""
    max_batch: int = MAX_BATCH
    """Requests in one batch; no more than may be pending or queued, else a full batch would always get 503."""
    retry_after_s: int = 1
    max_sessions: int = 1000
    session_lifetime_s: float = 600.0
    max_games: int = 16


class _Server:
    """The state that the routes share: the batcher, sessions, games and counts."""

    def __init__(
        self,
        batcher: Batcher,
        facts: PolicyFacts,
        make_env: Callable[[], gym.Env] | None,
        limits: Limits,
        describe: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.batcher, self.facts, self.limits = batcher, facts, limits
        self.describe = describe
        self.pending = 0
        self.sessions: SessionStore[Session] = SessionStore(
            lambda: Session(FrameStack(facts.frame_stack)),
            max_sessions=limits.max_sessions,
            lifetime_s=limits.session_lifetime_s,
        )
        self.make_env = make_env
        self.env_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="games")
        self.games: dict[str, Game] = {}

    @contextlib.contextmanager
    def admitted(self, count: int = 1) -> Any:
        """Counts `count` requests as being answered during the block.

        Raises:
            OverloadedError: there would be too many.
        """
        if self.pending + count > self.limits.max_pending:
            raise OverloadedError(f"{self.pending} requests are being answered")
        self.pending += count
        try:
            yield
        finally:
            self.pending -= count

    @contextlib.asynccontextmanager
    async def drafts(self, requests: Iterable[ActRequest]) -> AsyncIterator[dict[str, Session]]:
        """Yields session id -> draft, for the sessions that requests name; saves the drafts if the block succeeds."""
        # Always in the same order: otherwise two batches with the same sessions could wait for each other for ever.
        names = sorted({request.session_id for request in requests if request.session_id is not None})
        async with contextlib.AsyncExitStack() as held:
            yield {name: await held.enter_async_context(self.sessions.get(name).draft()) for name in names}

    async def act(self, request: ActRequest, drafts: Mapping[str, Session]) -> ActResponse:
        """Searches from a request's observation, and adds its frame to the draft of its session if there is an answer.

        Raises:
            BadInputError: its observation or its legal actions are wrong, or the network has no answer.
            OverloadedError: too many requests are waiting.
        """
        observation, mask = decode_observation(request.observation, self.facts)
        legal = decode_legal_actions(request.legal_actions, self.facts)
        if legal is None:
            legal = mask
        elif mask is not None:
            raise BadInputError("give an action_mask or legal_actions, not both")
        async with self._stacked(observation, request, drafts) as frames:
            return _response(await self.batcher.act(Query(frames, legal, request.num_simulations)))

    @contextlib.asynccontextmanager
    async def _stacked(
        self, observation: np.ndarray, request: ActRequest, drafts: Mapping[str, Session]
    ) -> AsyncIterator[np.ndarray]:
        """Yields the stack `[S, ...]` to search from; the session's draft keeps the frame if the block succeeds."""
        is_frame = observation.ndim == len(self.facts.frame_shape)
        if request.session_id is None:
            yield FrameStack(self.facts.frame_stack).push(observation) if is_frame else observation
            return
        if not is_frame:
            raise BadInputError("a session stacks frames itself: send the newest frame only")
        async with drafts[request.session_id].draft() as draft:
            if request.reset:
                draft.stack.reset()
            yield draft.stack.push(observation)

    async def begin_game(self, request: GameRequest) -> dict[str, Any]:
        """Begins a game and returns its first position; if there are too many, ends the least recently used one."""
        if self.make_env is None:
            raise HTTPException(404, "this server shows no games: it was not given an environment")
        try:
            env = await asyncio.get_running_loop().run_in_executor(self.env_thread, self.make_env)
        except PlayError as error:
            raise HTTPException(404, str(error)) from error
        game = Game(env, self.facts, self.env_thread)
        self.games[game.id] = game
        while len(self.games) > self.limits.max_games:
            self.games.pop(next(iter(self.games))).close()
        async with game.lock:
            return await game.begin(request.seed, self.batcher, request.num_simulations)

    def game(self, game_id: str) -> Game:
        """Returns a running game."""
        game = self.games.pop(game_id, None)
        if game is None:
            raise HTTPException(404, "there is no such game any more: begin a new one")
        self.games[game_id] = game  # Now the most recently used.
        return game

    def close(self) -> None:
        """Ends all games and the thread that steps them."""
        for game in self.games.values():
            game.close()
        self.games.clear()
        self.env_thread.shutdown(wait=False)


def create_app(
    batcher: Batcher,
    facts: PolicyFacts,
    *,
    make_env: Callable[[], gym.Env] | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    describe: Callable[[], Mapping[str, Any]] | None = None,
    on_start: Callable[[], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> fastapi.FastAPI:
    """Makes the application.

    Args:
        batcher: answers queries.
        facts: of the policy behind it.
        make_env: makes an environment for the page's games; None: the page has none.
        limits: see `Limits`.
        token: bearer token for all requests except those for the page and `/healthz`; None: none is needed.
        describe: returns the metadata of the policy in service, which may be exchanged; None: those of `facts`.
        on_start, on_stop: called when the server starts and stops.
    """
    limits = limits or Limits()
    server = _Server(batcher, facts, make_env, limits, describe or (lambda: facts.metadata))

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        if on_start:
            on_start()
        yield
        server.close()
        if on_stop:
            on_stop()

    app = fastapi.FastAPI(title="rllib_efficientzero", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(_routes(server))
    app.include_router(_game_routes(server), include_in_schema=False)
    _add_page(app)
    _add_problem_handlers(app, limits)
    app.add_middleware(
        Border,
        max_body_bytes=limits.max_body_bytes,
        body_timeout_s=limits.body_timeout_s,
        token=token,
    )
    return app


def _routes(server: _Server) -> fastapi.APIRouter:
    router = fastapi.APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether requests are taken."""
        return {"status": "ok"}

    @router.get("/v1/metadata", responses={401: {"model": Problem}})
    async def metadata() -> dict[str, Any]:
        """What the policy sees and does, and this server's limits."""
        limits = {"max_batch": server.limits.max_batch, "max_body_bytes": server.limits.max_body_bytes}
        games = server.make_env is not None
        return {**server.describe(), "max_simulations": MAX_SIMULATIONS, "games": games, **limits}

    @router.post("/v1/act", responses=PROBLEMS, response_model_exclude_none=True)
    async def act(request: ActRequest) -> ActResponse:
        """Searches from one observation."""
        with server.admitted():
            async with server.drafts([request]) as drafts:
                return await server.act(request, drafts)

    @router.post("/v1/act_batch", responses=PROBLEMS, response_model_exclude_none=True)
    async def act_batch(request: ActBatchRequest) -> ActBatchResponse:
        """Searches from several observations at once."""

        if len(request.requests) > server.limits.max_batch:
            raise BadInputError(f"a batch may have {server.limits.max_batch} requests, not {len(request.requests)}")
        parsed = [_parsed(one) for one in request.requests]

        async def answer(one: ActRequest | Problem, drafts: Mapping[str, Session]) -> ActResponse | Problem:
            if isinstance(one, Problem):
                return one
            try:
                return await server.act(one, drafts)
            except BadInputError as error:
                return Problem(detail=str(error))

        with server.admitted(len(parsed)):
            async with server.drafts(one for one in parsed if isinstance(one, ActRequest)) as drafts:
                return ActBatchResponse(answers=await all_or_none(answer(one, drafts) for one in parsed))

    return router


def _game_routes(server: _Server) -> fastapi.APIRouter:
    router = fastapi.APIRouter(prefix="/v1/games")

    @router.post("")
    async def begin(request: GameRequest) -> dict[str, Any]:
        with server.admitted():
            return await server.begin_game(request)

    @router.post("/{game_id}/step")
    async def step(game_id: str, request: StepRequest) -> dict[str, Any]:
        game = server.game(game_id)
        with server.admitted():
            async with game.lock:
                return await game.step(request.action, server.batcher, request.num_simulations)

    @router.post("/{game_id}/search")
    async def search(game_id: str, request: SearchRequest) -> dict[str, Any]:
        game = server.game(game_id)
        with server.admitted():
            async with game.lock:
                return await game.search(server.batcher, request.num_simulations)

    return router


def _parsed(one: Any) -> ActRequest | Problem:
    """Parses one request of a batch, or says what is wrong with it."""
    try:
        return ActRequest.model_validate(one)
    except pydantic.ValidationError as error:
        return Problem(detail=_told(error.errors(include_url=False)))


def _response(answer: Answer) -> ActResponse:
    if answer.problem is not None:
        raise BadInputError(answer.problem)
    return ActResponse(
        action=answer.action if answer.candidates is None else answer.candidates[answer.action],
        value=answer.value,
        visit_policy=answer.visit_policy,
        candidates=answer.candidates,
        num_simulations=answer.num_simulations,
        model=answer.model,
    )


def _add_page(app: fastapi.FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE), name="page")


def _add_problem_handlers(app: fastapi.FastAPI, limits: Limits) -> None:
    """Answers every error with JSON that has a `detail` in words, which repeats no input and names no file."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: fastapi.Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": _told(error.errors())}, 422)

    @app.exception_handler(BadInputError)
    async def bad_input(request: fastapi.Request, error: BadInputError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(OverloadedError)
    async def overloaded(request: fastapi.Request, error: OverloadedError) -> JSONResponse:
        return JSONResponse({"detail": "too many requests wait"}, 503, {"Retry-After": str(limits.retry_after_s)})

    @app.exception_handler(HTTPException)
    async def refused(request: fastapi.Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: fastapi.Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"detail": "internal error"}, 500)


def _told(errors: Any) -> str:
    """Sums up pydantic's errors in one line, without the values that were sent."""
    errors = list(errors)
    if errors and errors[0]["type"] == "json_invalid":
        return f"the body is no JSON: it goes wrong at character {errors[0]['loc'][-1]}"
    found = [
        f"{'.'.join(str(part) for part in error['loc'] if part != 'body')[:200] or 'body'}: {error['msg'][:200]}"
        for error in errors[:MAX_TOLD_PROBLEMS]
    ]
    return "; ".join(found)
