"""The search tree in a GPU's memory: like `BatchedTree` on the host, but no simulation waits for the host."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from rllib_efficientzero.mcts.config import SearchConfig
from rllib_efficientzero.mcts.device_rules import GumbelRules, PuctRules, RootResults, power_of_two
from rllib_efficientzero.mcts.host_tree import host_tree
from rllib_efficientzero.models.triton_support import current, succeeds

MAX_LANES = 1024
"""The most actions, and the most simulations, that a program of a kernel can process at once."""
EDGES_AT_ONCE = 256
_BEGUN = ("row", "child", "edge_visits", "edge_q", "visits", "value_sum", "raw_value", "simulation", "is_valid")
"""The tensors that `tree_kernels.begin` sets."""


@functools.cache
def has_triton(device: torch.device) -> bool:
    """Whether a device can hold trees: Triton is installed, finds a C compiler, and supports the device.

    If not, a warning gives the reason once.
    """

    def grow() -> None:
        tree = DeviceTree(1, 2, SearchConfig(num_simulations=1), device)
        zeros = torch.zeros(1, 2, device=device)
        tree.reset(np.zeros((1, 2), np.float32), value=np.zeros(1, np.float32), noise_fraction=0.0, seed=0)
        tree.select()
        tree.expand_and_backup(zeros[:, 0], zeros[:, 0], zeros)
        tree.visit_counts()

    return succeeds(grow, f"search trees cannot live on {device}, which makes searches slower")


class DeviceTree:
    """Search trees for a batch of B positions with A actions, grown in lock step on a device.

    The same seed gives the same results as with `BatchedTree`, up to rounding. But the two calls of a simulation,
    `select()` and `expand_and_backup()`, only enqueue kernels, which a CUDA graph can record: the host waits only when
    it asks for results.
    """

    def __init__(
        self,
        num_roots: int,
        num_actions: int,
        config: SearchConfig,
        device: torch.device,
        *,
        max_considered_actions: int | None = None,
        first_root: int = 0,
    ) -> None:
        """Args:
        num_roots: B.
        num_actions: A.
        config: of the search; N is its `num_simulations`.
        device: where the trees live.
        max_considered_actions: None: as configured.
        first_root: the number of the first root in a larger batch; see `BatchedTree`.

        Raises:
            ImportError: there is no Triton.
        """
        from rllib_efficientzero.mcts import tree_kernels

        self.num_roots, self.num_actions, self.num_simulations = num_roots, num_actions, config.num_simulations
        self._kernels, self._device, self._first_root = tree_kernels, device, first_root
        self._config = config
        considered = max_considered_actions or config.max_considered_actions
        self._rules = (PuctRules if config.policy == "puct" else GumbelRules)(
            config, num_roots, num_actions, considered, device
        )
        # A tree of roots alone on the host, to check the inputs of a search and to mix noise into the priors.
        self._roots = host_tree(config, num_roots, num_actions, num_simulations=0)
        num_slots = config.num_simulations + 1
        self._sizes = {"S": num_slots, "A": num_actions, "LANES": power_of_two(num_actions)}
        self._trees = _allocate(num_roots, num_slots, num_actions, device)
        self._found: RootResults | None = None

    @property
    def index(self) -> Tensor:
        """`[4, B]` int64, for the selected leaves: the rows of their parents' latents, the rows of their parents' LSTM
        states, their own rows, and their actions. Node s of root b has the row s * B + b; where the LSTM state is
        reset, the row is the root's."""
        return self._trees["index"]

    def reset(
        self,
        policy_logits: np.ndarray,
        *,
        value: np.ndarray,
        legal_actions: np.ndarray | None = None,
        noise: np.ndarray | None = None,
        noise_fraction: float = 0.25,
        gumbel: np.ndarray | None = None,
        seed: int,
    ) -> None:
        """Start a new search from B roots; see `BatchedTree.reset`."""
        self._roots.reset(
            policy_logits,
            value=value,
            legal_actions=legal_actions,
            noise=noise,
            noise_fraction=noise_fraction,
            gumbel=gumbel,
        )
        row = self._rules.reset(self._roots, policy_logits, legal_actions, gumbel, self._first_root, seed)
        self._begin(row, value)

    def _begin(self, row: np.ndarray, value: np.ndarray) -> None:
        of_roots = torch.from_numpy(np.ascontiguousarray(np.column_stack((row, value))))
        given = of_roots.to(self._device, non_blocking=True)
        with current(self._device):
            self._kernels.begin[(self.num_roots,)](
                *(self._trees[name] for name in _BEGUN), given, **self._sizes, EDGES=EDGES_AT_ONCE, num_warps=1
            )
        self._found = None

    def select(self) -> None:
        """Descends from every root to a leaf, and writes the leaves to `index`."""
        with current(self._device):
            self._rules.select(self._trees, self._sizes | {"HORIZON": self._config.value_prefix_horizon})

    def expand_and_backup(self, value_prefix: Tensor, value: Tensor, policy_logits: Tensor) -> None:
        """Expands the selected leaves with the network's outputs `[B]`, `[B]`, `[B, A]`, and backs up their values."""
        self._found = None
        with current(self._device):
            self._kernels.expand_and_backup[(self.num_roots,)](
                **self._trees,
                new_value_prefix=value_prefix.contiguous(),
                new_value=value.contiguous(),
                new_logits=policy_logits.contiguous(),
                **self._sizes,
                HORIZON=self._config.value_prefix_horizon,
                DISCOUNT=self._config.discount,
                PRIORS=self._rules.rows_are_priors,
                num_warps=1,
            )

    # --- Results, which wait for the device --------------------------------------------------------------------------

    def visit_counts(self) -> np.ndarray:
        """See `BatchedTree`."""
        return self._results().visits

    def root_values(self) -> np.ndarray:
        """See `BatchedTree`."""
        return self._results().value

    def qvalues(self) -> np.ndarray:
        """See `BatchedTree`."""
        return self._results().q

    def improved_policy(self) -> np.ndarray:
        """See `BatchedTree`."""
        return self._rules.improved_policy(self._results())

    def selected_actions(self) -> np.ndarray:
        """See `BatchedTree`."""
        return self._rules.selected_actions(self._results())

    def node_table(self, root: int) -> dict[str, np.ndarray]:
        """See `BatchedTree`."""
        trees, nodes = self._trees, slice(0, int(self._trees["simulation"][root]))
        columns = {name: trees[name][root, nodes].cpu().numpy() for name in ("parent", "action", "depth", "visits")}
        columns["value"] = (trees["value_sum"][root, nodes].cpu().numpy() / columns["visits"]).astype(np.float32)
        columns["reward"] = trees["reward"][root, nodes].cpu().numpy()
        priors = self._rules.priors(trees["row"][root, nodes].cpu().numpy())
        columns["prior"] = priors[columns["parent"], columns["action"]]
        for name, of_root in (("parent", -1), ("action", -1), ("depth", 0), ("reward", 0.0), ("prior", 1.0)):
            columns[name][0] = of_root
        return columns

    def _results(self) -> RootResults:
        """Waits for the device, and copies the statistics of the roots to the host, in one copy.

        Raises:
            ValueError: an output of the network was not finite.
        """
        if self._found is None:
            trees, count = self._trees, self.num_roots
            value = trees["value_sum"][:, 0] / trees["visits"][:, 0]
            of_actions = [trees[name][:, 0].T for name in ("edge_visits", "edge_q", "row")]  # see `by_columns`
            of_roots = [value, trees["raw_value"][:, 0], trees["is_valid"]]
            flat = torch.cat([tensor.float().flatten() for tensor in (*of_actions, *of_roots)]).cpu().numpy()
            visits, q, row = flat[: -3 * count].reshape(3, -1, count).transpose(0, 2, 1)
            mean_value, raw_value, is_valid = flat[-3 * count :].reshape(3, count)
            if not is_valid.all():
                root = int(is_valid.argmin())
                raise ValueError(f"what the network says of a leaf below root {root} is not finite, or beyond 1e30")
            found = RootResults(row, visits.astype(np.int32), q, mean_value, raw_value)
            self._found = self._rules.completed(found)
        return self._found


def _allocate(num_roots: int, num_slots: int, num_actions: int, device: torch.device) -> dict[str, Tensor]:
    """Allocates the tensors that the docstring of `tree_kernels` describes."""
    of_edges = {"row": torch.float32, "child": torch.int32, "edge_visits": torch.int32, "edge_q": torch.float32}
    of_nodes = {"visits": torch.int32, "value_sum": torch.float64}
    of_nodes |= dict.fromkeys(("raw_value", "value_prefix", "reward", "node_q"), torch.float32)
    of_nodes |= dict.fromkeys(("parent", "action", "depth"), torch.int32)
    of_roots = dict.fromkeys(("simulation", "is_valid", "depth_of_leaf", "parent_of_leaf"), torch.int32)

    def zeros(dtypes: dict[str, torch.dtype], *shape: int) -> dict[str, Tensor]:
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name, dtype in dtypes.items()}

    return (
        zeros(of_edges, num_roots, num_slots, num_actions)
        | zeros(of_nodes, num_roots, num_slots)
        | zeros(of_roots, num_roots)
        | zeros({"index": torch.int64}, 4, num_roots)
    )
