# distutils: language = c++
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The only binding of the search tree of ctree/tree.hpp to Python: checks arrays, releases the GIL and calls C++.

Arrays are passed as plain `np.ndarray`, checked by hand and read through their data pointer. For such small arguments
that is several times cheaper than typed memoryviews, which at one root would cost more than the search itself.
"""

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libcpp cimport bool as cbool

import operator

import numpy as np

cnp.import_array()


cdef extern from "tree.hpp" namespace "efficientzero" nogil:
    cdef enum class Policy:
        kPuct
        kGumbel

    cdef struct Config:
        int64_t num_roots, num_actions, num_simulations, horizon, max_considered_actions, num_threads, first_root
        Policy policy
        double discount, pb_c_init, pb_c_base, value_delta_max, c_visit, c_scale, min_q_range
        cbool uniform_first_visit, random_ties
        uint64_t seed

    cdef struct RootInput:
        const float *logits
        const float *value
        const uint8_t *legal
        const float *noise
        const float *gumbel
        double noise_fraction

    cdef struct NodeTable:
        int32_t *parent
        int32_t *action
        int32_t *depth
        int32_t *visits
        float *value
        float *reward
        float *prior

    cdef cppclass CppTree "efficientzero::BatchedTree":
        CppTree(const Config&) except +
        void reseed(uint64_t)
        void reset(const RootInput&) except +
        void select(int32_t*, int32_t*, int32_t*) except +
        void expand_and_backup(const float*, const float*, const float*) except +
        void visit_counts(int32_t*) except +
        void root_values(float*) except +
        void qvalues(float*) except +
        void improved_policy(float*) except +
        void selected_actions(int32_t*) except +
        void node_table(int64_t, const NodeTable&) except +
        int simulation()
        size_t nbytes()


cdef object bad_array(str name, object given, str dtype, object shape):
    """Returns the exception for an array with a wrong type, dtype, shape or layout."""
    expected = f"{name} must be a C-contiguous numpy array of {dtype} and shape {shape}"
    if not isinstance(given, np.ndarray):
        return TypeError(f"{expected}, not {type(given).__name__}")
    if given.dtype not in ((np.bool_, np.uint8) if dtype == "bool or uint8" else (np.float32,)):
        return TypeError(f"{expected}; its dtype is {given.dtype}")
    if given.shape != shape:
        return ValueError(f"{expected}; its shape is {given.shape}")
    return ValueError(f"{expected}; it is not contiguous, aligned and in native byte order: use np.ascontiguousarray")


cdef inline bint has_layout(cnp.ndarray array, Py_ssize_t rows, Py_ssize_t columns) noexcept:
    """Whether the array is [rows, columns], or [rows] for columns = 0, and can be read as a C array."""
    if cnp.PyArray_NDIM(array) != (2 if columns else 1) or not cnp.PyArray_ISCARRAY_RO(array):
        return False
    return cnp.PyArray_DIM(array, 0) == rows and (columns == 0 or cnp.PyArray_DIM(array, 1) == columns)


cdef const float* floats(object given, str name, Py_ssize_t rows, Py_ssize_t columns) except NULL:
    if (cnp.PyArray_Check(given) and cnp.PyArray_TYPE(<cnp.ndarray>given) == cnp.NPY_FLOAT32
            and has_layout(<cnp.ndarray>given, rows, columns)):
        return <const float*>cnp.PyArray_DATA(<cnp.ndarray>given)
    raise bad_array(name, given, "float32", (rows, columns)[:2 if columns else 1])


cdef const uint8_t* flags(object given, str name, Py_ssize_t rows, Py_ssize_t columns) except NULL:
    if (cnp.PyArray_Check(given) and cnp.PyArray_TYPE(<cnp.ndarray>given) in (cnp.NPY_BOOL, cnp.NPY_UINT8)
            and has_layout(<cnp.ndarray>given, rows, columns)):
        return <const uint8_t*>cnp.PyArray_DATA(<cnp.ndarray>given)
    raise bad_array(name, given, "bool or uint8", (rows, columns))


cdef bint is_second(str name, object given, str first, str second) except -1:
    """Whether the second of two words was given; raises for anything but one of the two."""
    if not isinstance(given, str) or given not in (first, second):
        raise ValueError(f"{name} is {given!r}; it must be {first!r} or {second!r}")
    return given == second


cdef object as_integer(str name, object given, object low, object high):
    """Checks an integer and its range. Cython's own conversion would truncate 2.5 to 2."""
    try:
        value = operator.index(given)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(given).__name__}") from None
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be between {low} and {high}")
    return value


cdef uint64_t as_seed(object seed) except? 0:
    return as_integer("seed", seed, 0, 2**64 - 1)


cdef int64_t as_size(str name, object given) except? 0:
    # The C++ code checks the narrower limits of each size; these only keep the number within 64 bits.
    return as_integer(name, given, -2**63, 2**63 - 1)


cdef class BatchedTree:
    """Search trees for a batch of `num_roots` (B) positions with `num_actions` (A) actions, grown in lock step.

    Every simulation is one `select()`, which picks a leaf per root, and one `expand_and_backup()`, which takes the
    network's outputs for these leaves. A method that raises changes nothing. Results of a root depend on the seed, on
    the root's index and on its own inputs, never on other roots or on `num_threads`.

    Args:
        num_simulations: the most simulations, N, of a search.
        discount: of rewards, per edge.
        policy: "puct" (EfficientZero) or "gumbel" (Gumbel MuZero, which equals `mctx.gumbel_muzero_policy`).
        pb_c_init, pb_c_base: c1 and c2 of the pUCT score.
        value_delta_max: the least range by which Q values are divided to normalise them to [0, 1] ("puct").
        horizon: the reward LSTM, and with it value prefixes, start anew after this many steps.
        first_visit: how a node's first action is chosen: "uniform", ignoring the prior as the paper's code does, or
            "prior", by the prior.
        tie_break: "random" or "first" (lowest action) among scores within 1e-6 of the best; "gumbel" has no ties.
        num_threads: threads among which the roots are divided. Only worth it for some hundred roots or more.
        first_root: the index of the first root, if the batch is part of a larger one: results do not depend on how
            that is divided.
        seed: of all random numbers.
        max_considered_actions, c_visit, c_scale: of sequential halving and of the Q scale ("gumbel").
        min_q_range: the least range by which a node's Q values are divided to normalise them to [0, 1] ("gumbel"). With
            mctx's 1e-8, meaningless differences decide if all actions have the same value; EfficientZero V2 has 0.01.

    Example:
        >>> import numpy as np
        >>> tree = BatchedTree(2, 3, 10, discount=0.99, tie_break="first")
        >>> tree.reset(np.zeros((2, 3), np.float32))
        >>> for _ in range(tree.num_simulations):
        ...     parent_slot, action, depth = tree.select()
        ...     tree.expand_and_backup(np.zeros(2, np.float32), np.zeros(2, np.float32), np.zeros((2, 3), np.float32))
        >>> tree.visit_counts().sum(axis=1).tolist()
        [10, 10]
    """

    cdef CppTree *tree
    cdef readonly Py_ssize_t num_roots
    cdef readonly Py_ssize_t num_actions
    cdef readonly Py_ssize_t num_simulations
    cdef bint busy
    cdef int32_t *leaves  # [3, B]: parent slots, actions, depths
    cdef tuple leaf_arrays

    def __cinit__(self, num_roots, num_actions, num_simulations, *, double discount, policy="puct",
                  double pb_c_init=1.25, double pb_c_base=19652.0, double value_delta_max=0.01, horizon=5,
                  first_visit="uniform", tie_break="random", num_threads=1, first_root=0, seed=0,
                  max_considered_actions=16, double c_visit=50.0, double c_scale=0.1, double min_q_range=1e-8):
        cdef Config config
        config.num_roots = as_size("num_roots", num_roots)
        config.num_actions = as_size("num_actions", num_actions)
        config.num_simulations = as_size("num_simulations", num_simulations)
        config.policy = Policy.kGumbel if is_second("policy", policy, "puct", "gumbel") else Policy.kPuct
        config.discount, config.pb_c_init, config.pb_c_base = discount, pb_c_init, pb_c_base
        config.value_delta_max, config.horizon = value_delta_max, as_size("horizon", horizon)
        config.uniform_first_visit = not is_second("first_visit", first_visit, "uniform", "prior")
        config.random_ties = not is_second("tie_break", tie_break, "random", "first")
        config.max_considered_actions = as_size("max_considered_actions", max_considered_actions)
        config.c_visit, config.c_scale, config.min_q_range = c_visit, c_scale, min_q_range
        config.num_threads, config.seed = as_size("num_threads", num_threads), as_seed(seed)
        config.first_root = as_size("first_root", first_root)
        self.tree = new CppTree(config)
        self.num_roots, self.num_actions, self.num_simulations = num_roots, num_actions, num_simulations
        # Views of an array that only this object holds: a view does not own its memory, so a user cannot resize it.
        owner = np.zeros((3, num_roots), np.int32)
        self.leaves = <int32_t*>cnp.PyArray_DATA(<cnp.ndarray>owner)
        self.leaf_arrays = (owner[0], owner[1], owner[2])

    def __dealloc__(self):
        del self.tree

    cdef int require_idle(self) except -1:
        # Checked under the GIL; without the check, a second thread could enter while the first runs without the GIL.
        if self.busy:
            raise RuntimeError("another thread is using this tree: give every thread a tree of its own")
        return 0

    cdef int enter(self) except -1:
        self.require_idle()
        self.busy = True
        return 0

    def reset(self, policy_logits, *, value=None, legal_actions=None, noise=None, double noise_fraction=0.25,
              gumbel=None, seed=None):
        """Starts a new search from B roots.

        Args:
            policy_logits: f32 [B, A]. -inf gives a prior of 0, though the action may still be taken because of noise or
                if no other is left; only `legal_actions` forbids actions. Every root needs a legal action with a finite
                logit.
            value: f32 [B], the network's value of the root. It counts as the root's first visit; without it ("puct"
                only) the root's value is the sum of the backups over N + 1, as in the paper's code.
            legal_actions: bool or u8 [B, A]; actions with 0 get no prior and are never taken at the root.
            noise: f32 [B, A], mixed into the root's prior ("puct"); renormalised over the legal actions.
            noise_fraction: the share of the noise in the root's prior.
            gumbel: f32 [B, A], Gumbel noise ("gumbel"). Without it, as in evaluation, the noise is 0.
            seed: restarts the random numbers; without it, they continue from the previous search.
        """
        cdef Py_ssize_t roots = self.num_roots, actions = self.num_actions
        cdef uint64_t new_seed = 0 if seed is None else as_seed(seed)
        cdef cbool reseed = seed is not None
        cdef RootInput given
        given.logits = floats(policy_logits, "policy_logits", roots, actions)
        if value is not None:
            given.value = floats(value, "value", roots, 0)
        if legal_actions is not None:
            given.legal = flags(legal_actions, "legal_actions", roots, actions)
        if noise is not None:
            given.noise = floats(noise, "noise", roots, actions)
        if gumbel is not None:
            given.gumbel = floats(gumbel, "gumbel", roots, actions)
        given.noise_fraction = noise_fraction
        self.enter()
        try:
            with nogil:
                self.tree.reset(given)
                if reseed:
                    self.tree.reseed(new_seed)
        finally:
            self.busy = False

    def select(self):
        """Descends from every root to a leaf.

        Returns:
            parent_slot i32 [B], the leaf's parent: slot 0 is the root, slot s the node made by simulation s;
            action i32 [B], taken there; depth i32 [B] of the leaf, 1 for a child of the root.
            All calls return the same arrays: the next `select()` overwrites them.
        """
        self.enter()
        try:
            with nogil:
                self.tree.select(self.leaves, self.leaves + self.num_roots, self.leaves + 2 * self.num_roots)
        finally:
            self.busy = False
        return self.leaf_arrays

    def expand_and_backup(self, value_prefix, value, policy_logits):
        """Makes nodes of the selected leaves, with the network's value_prefix f32 [B], value f32 [B] and policy_logits
        f32 [B, A], and adds their values to all their ancestors. It also finds the leaves that the next `select()`
        returns, while the nodes are in the cache."""
        cdef const float *prefixes = floats(value_prefix, "value_prefix", self.num_roots, 0)
        cdef const float *values = floats(value, "value", self.num_roots, 0)
        cdef const float *logits = floats(policy_logits, "policy_logits", self.num_roots, self.num_actions)
        self.enter()
        try:
            with nogil:
                self.tree.expand_and_backup(prefixes, values, logits)
        finally:
            self.busy = False

    def visit_counts(self):
        """Visits of the root's children, i32 [B, A]."""
        out = np.empty((self.num_roots, self.num_actions), np.int32)
        self.require_idle()
        self.tree.visit_counts(<int32_t*>cnp.PyArray_DATA(<cnp.ndarray>out))
        return out

    def root_values(self):
        """Mean of all returns that reached the root, f32 [B]; see `reset(value=...)`."""
        out = np.empty(self.num_roots, np.float32)
        self.require_idle()
        self.tree.root_values(<float*>cnp.PyArray_DATA(<cnp.ndarray>out))
        return out

    def qvalues(self):
        """Q values of the root's actions, f32 [B, A]; unvisited ones are 0 ("puct") or the mixed value ("gumbel")."""
        out = np.empty((self.num_roots, self.num_actions), np.float32)
        self.require_idle()
        self.tree.qvalues(<float*>cnp.PyArray_DATA(<cnp.ndarray>out))
        return out

    def improved_policy(self):
        """The improved policy, f32 [B, A]: shares of the visits ("puct"; the root's prior before the first simulation)
        or the softmax of logits + scaled completed Q values ("gumbel")."""
        out = np.empty((self.num_roots, self.num_actions), np.float32)
        self.require_idle()
        self.tree.improved_policy(<float*>cnp.PyArray_DATA(<cnp.ndarray>out))
        return out

    def selected_actions(self):
        """The best action of each root, i32 [B]: the most visited one; of several, the first ("puct") or the one with
        the best gumbel + logit + scaled Q value ("gumbel")."""
        out = np.empty(self.num_roots, np.int32)
        self.require_idle()
        self.tree.selected_actions(<int32_t*>cnp.PyArray_DATA(<cnp.ndarray>out))
        return out

    def node_table(self, root):
        """All nodes of one tree, to draw it: arrays [simulation + 1] by name; the root is first, with parent -1."""
        cdef int64_t index = as_size("root", root)
        cdef Py_ssize_t nodes = self.simulation + 1
        names = ("parent", "action", "depth", "visits", "value", "reward", "prior")
        columns = [np.empty(nodes, np.int32 if i < 4 else np.float32) for i in range(7)]
        cdef NodeTable table
        table.parent = <int32_t*>cnp.PyArray_DATA(<cnp.ndarray>columns[0])
        table.action = <int32_t*>cnp.PyArray_DATA(<cnp.ndarray>columns[1])
        table.depth = <int32_t*>cnp.PyArray_DATA(<cnp.ndarray>columns[2])
        table.visits = <int32_t*>cnp.PyArray_DATA(<cnp.ndarray>columns[3])
        table.value = <float*>cnp.PyArray_DATA(<cnp.ndarray>columns[4])
        table.reward = <float*>cnp.PyArray_DATA(<cnp.ndarray>columns[5])
        table.prior = <float*>cnp.PyArray_DATA(<cnp.ndarray>columns[6])
        self.require_idle()
        self.tree.node_table(index, table)
        return dict(zip(names, columns))

    @property
    def simulation(self):
        """The number of simulations done in the current search."""
        return self.tree.simulation()

    @property
    def nbytes(self):
        """Memory of the trees in bytes."""
        return self.tree.nbytes()
