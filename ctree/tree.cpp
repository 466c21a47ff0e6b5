#include "tree.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "simd.hpp"
#include "thread_pool.hpp"

namespace efficientzero {
namespace {

constexpr float kTieTolerance = 1e-6f;  // The original's: scores this close to the best one count as equal.
constexpr float kLowLogit = -1e9f;      // mctx's: below every real score, above that of an illegal action.
constexpr float kTiny = std::numeric_limits<float>::min();
constexpr float kLargest = 1e30f;  // Larger inputs could overflow in a sum along a path.

size_t pad(size_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

float clip01(float x) { return std::min(std::max(x, 0.0f), 1.0f); }

// splitmix64: a counter and a hash of it, so that neighbouring seeds give unrelated streams.
uint64_t next_random(uint64_t& state) {
  uint64_t x = state += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

int random_below(uint64_t& state, int count) {
  return static_cast<int>((next_random(state) >> 32) * static_cast<uint64_t>(count) >> 32);
}

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    fail(std::string(name) + " is " + std::to_string(value) + "; it must be between " + std::to_string(low) + " and " +
         std::to_string(high));
  }
}

void check_range(const char* name, double value, double low, double high) {
  if (!(value >= low && value <= high)) {
    fail(std::string(name) + " is " + std::to_string(value) + "; it must be between " + std::to_string(low) + " and " +
         std::to_string(high));
  }
}

void check_values(const char* name, const float* values, int64_t count) {
  for (int64_t root = 0; root < count; ++root) {
    if (!(std::fabs(values[root]) <= kLargest)) {
      fail(std::string(name) + " of root " + std::to_string(root) + " is " + std::to_string(values[root]) +
           "; it must be finite and at most 1e30 in size");
    }
  }
}

// At least one logit must be finite, none may be NaN or +inf. Those of illegal actions are not looked at.
void check_logits(const float* logits, const uint8_t* legal, int64_t root, int64_t num_actions) {
  int any = 0, finite = 0, wrong = 0;  // No branches: this runs over every network output.
  for (int64_t a = 0; a < num_actions; ++a) {
    const int looked_at = legal == nullptr || legal[a] != 0;
    any |= looked_at;
    finite |= looked_at & (std::fabs(logits[a]) <= std::numeric_limits<float>::max());
    wrong |= looked_at & !(logits[a] <= std::numeric_limits<float>::max());
  }
  if (finite && !wrong) return;
  const std::string where = " of root " + std::to_string(root);
  if (!any) fail("legal_actions" + where + " allow no action; a root needs at least one");
  if (wrong) fail("policy_logits" + where + " hold NaN or +inf; every logit must be finite or -inf");
  fail("policy_logits" + where + " are -inf for every legal action; at least one must be finite");
}

void check_noise(const float* noise, const uint8_t* legal, int64_t root, int64_t num_actions) {
  double sum = 0.0;
  for (int64_t a = 0; a < num_actions; ++a) {
    if (legal != nullptr && !legal[a]) continue;
    if (!(noise[a] >= 0.0f && noise[a] <= kLargest)) {
      fail("noise of root " + std::to_string(root) + " is " + std::to_string(noise[a]) + " for action " +
           std::to_string(a) + "; it must be finite and not negative");
    }
    sum += noise[a];
  }
  if (!(sum > 0.0)) fail("noise of root " + std::to_string(root) + " is 0 for every legal action");
}

}  // namespace

struct alignas(16) BatchedTree::Node {
  double value_sum;
  double weighted_q;     // over visited children: sum of Q (pUCT), of prior * Q (Gumbel)
  float reward, prior;   // of the edge into this node
  float value_prefix;
  float raw_value;       // the network's
  float visited_prior;   // sum over visited children (Gumbel)
  float open_best;       // pUCT: largest open prior. Gumbel: its share of all open priors
  float open_next;       // pUCT: second largest open prior. Gumbel: logarithm of the sum of all
  int32_t visits, most_visits;  // own, and those of the most visited child
  uint16_t parent, action, edge, depth;  // edge: its place among the parent's visited children
  uint16_t children, open_action, num_open;
  bool has_priors;  // open[] holds probabilities, not yet logits: a leaf's softmax waits until someone passes through
  bool scanned;     // open_* are up to date
};

struct BatchedTree::Root {
  uint64_t random;
  double mean_q;  // of the node last passed, while descending
  float min_q, max_q;
  float low, scale;  // normalised Q = (Q - low) * scale
  float inverse_mass;  // Gumbel: 1 / sum exp(root_logits)
  uint16_t leaf_parent, leaf_action;
  // Sequential halving: the actions considered, the visits each of them has, how many had their turn, turns left.
  int32_t first_considered, considered, considered_visits, position, rounds;
};

struct BatchedTree::Block {
  Node* header;
  float *open, *u, *q, *n;
  uint16_t *child, *action;
  Node* operator->() const { return header; }
};

[[gnu::always_inline]] inline BatchedTree::Block BatchedTree::block(int root, int slot) const {
  std::byte* at = arena_.get() + (static_cast<size_t>(root) * (config_.num_simulations + 1) + slot) * stride_;
  Block node;
  node.header = reinterpret_cast<Node*>(at);
  node.open = reinterpret_cast<float*>(at + sizeof(Node));
  node.u = node.open + padded_actions_;
  node.q = node.u + max_children_;
  node.n = node.q + max_children_;
  float* after = config_.policy == Policy::kGumbel ? node.n + max_children_ : node.n;
  node.child = reinterpret_cast<uint16_t*>(after);
  node.action = node.child + max_children_;
  return node;
}

BatchedTree::BatchedTree(const Config& config) : config_(config) {
  check_range("num_roots", config.num_roots, 1, 1 << 20);
  check_range("num_actions", config.num_actions, 1, 65535);
  check_range("num_simulations", config.num_simulations, 0, 65534);
  check_range("horizon", config.horizon, 1, 1 << 30);
  check_range("max_considered_actions", config.max_considered_actions, 1, 1 << 30);
  check_range("num_threads", config.num_threads, 1, 1024);
  check_range("first_root", config.first_root, 0, 1 << 30);
  check_range("discount", config.discount, 0.0, 1.0);
  check_range("pb_c_init", config.pb_c_init, 0.0, 1e6);
  check_range("pb_c_base", config.pb_c_base, 1e-6, 1e12);
  check_range("value_delta_max", config.value_delta_max, 0.0, 1e30);
  check_range("c_visit", config.c_visit, 0.0, 1e6);
  check_range("c_scale", config.c_scale, 0.0, 1e6);
  check_range("min_q_range", config.min_q_range, 1e-30, 1e30);

  const size_t roots = config.num_roots, nodes = config.num_simulations + 1, actions = config.num_actions;
  const bool gumbel = config.policy == Policy::kGumbel;
  padded_actions_ = pad(actions);
  max_children_ = pad(std::min<size_t>(actions, config.num_simulations));
  stride_ = sizeof(Node) + padded_actions_ * sizeof(float) + max_children_ * (gumbel ? 3 : 2) * sizeof(float) +
            max_children_ * 2 * sizeof(uint16_t);
  if (__builtin_mul_overflow(stride_, roots * nodes, &arena_bytes_)) throw std::bad_alloc();
  // Left uninitialised: a block is written when its node is made. (The sanitizers abort in a `new` that may throw.)
  arena_.reset(new (std::nothrow) std::byte[arena_bytes_]);
  if (!arena_) throw std::bad_alloc();
  bounds_stride_ = pad(nodes);
  roots_.resize(roots);
  if (gumbel) {
    root_logits_.resize(roots * actions);
  } else {
    edge_q_.resize(roots * bounds_stride_);
  }
  for (size_t n = 0; n < nodes; ++n) {
    const double factor = config.pb_c_init + std::log((n + config.pb_c_base + 1.0) / config.pb_c_base);
    exploration_.push_back(static_cast<float>(std::max(factor * std::sqrt(std::max<double>(n, 1.0)), 1e-30)));
  }
  for (size_t n = 0; n < std::max(nodes, actions) + 3; ++n) reciprocal_.push_back(1.0 / std::max<double>(n, 1.0));
  const int64_t threads = std::min(config.num_threads, config.num_roots);
  scratch_.resize(threads * std::max<size_t>(max_children_, kLanes));
  if (threads > 1) pool_ = std::make_unique<ThreadPool>(static_cast<int>(threads));
  reseed(config.seed);
}

BatchedTree::~BatchedTree() {
  if (pool_ && !pool_->has_threads()) (void)pool_.release();
}

size_t BatchedTree::nbytes() const {
  return arena_bytes_ + roots_.size() * sizeof(Root) + scratch_.size() * sizeof(float) +
         (edge_q_.size() + root_logits_.size() + exploration_.size()) * sizeof(float) +
         reciprocal_.size() * sizeof(double);
}

// Roots lie far apart, and what one needs first is known while the one before it is worked on.
inline void BatchedTree::prefetch(int root) const {
  const Block first = block(root, stage_ == Stage::kSelected ? roots_[root].leaf_parent : 0);
  __builtin_prefetch(first.header);
  __builtin_prefetch(first.u);
  __builtin_prefetch(first.q);
  if (stage_ == Stage::kSelected) __builtin_prefetch(block(root, simulation_ + 1).header, 1);
}

template <typename Task>
void BatchedTree::for_each_root(const Task& task) {
  const auto share = [&](int begin, int end, int worker) {
    float* scratch = scratch_.data() + worker * std::max<size_t>(max_children_, kLanes);
    for (int root = begin; root < end; ++root) {
      if (root + 1 < end) prefetch(root + 1);
      task(root, scratch);
    }
  };
  if (pool_) {
    pool_->run(static_cast<int>(config_.num_roots), share);
  } else {
    share(0, static_cast<int>(config_.num_roots), 0);
  }
}

// ---------------------------------------------------------------------------------------------------------- checking

void BatchedTree::require_reset() const {
  if (stage_ == Stage::kNew) throw std::runtime_error("the tree has no roots yet: call reset() first");
}

void BatchedTree::check_reset(const RootInput& input) const {
  if (config_.policy == Policy::kGumbel) {
    if (input.value == nullptr) fail("policy='gumbel' needs value, the network's value of each root");
    if (input.noise != nullptr) fail("noise belongs to policy='puct'; policy='gumbel' explores with gumbel");
  } else if (input.gumbel != nullptr) {
    fail("gumbel belongs to policy='gumbel'; policy='puct' explores with noise");
  }
  check_range("noise_fraction", input.noise_fraction, 0.0, 1.0);
  if (input.value != nullptr) check_values("value", input.value, config_.num_roots);
  const int64_t actions = config_.num_actions;
  for (int64_t root = 0; root < config_.num_roots; ++root) {
    const uint8_t* legal = input.legal == nullptr ? nullptr : input.legal + root * actions;
    check_logits(input.logits + root * actions, legal, root, actions);
    if (input.noise != nullptr) check_noise(input.noise + root * actions, legal, root, actions);
    for (int64_t a = 0; input.gumbel != nullptr && a < actions; ++a) {
      if (!(std::fabs(input.gumbel[root * actions + a]) <= kLargest)) {
        fail("gumbel of root " + std::to_string(root) + " is not finite for action " + std::to_string(a));
      }
    }
  }
}

void BatchedTree::check_network(const float* value_prefix, const float* value, const float* logits) const {
  check_values("value_prefix", value_prefix, config_.num_roots);
  check_values("value", value, config_.num_roots);
  for (int64_t root = 0; root < config_.num_roots; ++root) {
    check_logits(logits + root * config_.num_actions, nullptr, root, config_.num_actions);
  }
}

// ------------------------------------------------------------------------------------------------- the root's priors

void BatchedTree::reseed(uint64_t seed) {
  for (size_t root = 0; root < roots_.size(); ++root) {
    uint64_t state = seed;
    state = next_random(state) + config_.first_root + root;
    roots_[root].random = next_random(state);
  }
}

void BatchedTree::reset(const RootInput& input) {
  check_reset(input);
  for_each_root([&](int root, float*) { reset_root(root, input); });
  simulation_ = 0;
  stage_ = Stage::kReady;
}

namespace {

// Probabilities of the legal actions into `priors`, exactly 0 for the others. Returns the largest legal logit.
float masked_softmax(const float* logits, const uint8_t* legal, size_t count, float* priors, double& mass) {
  float largest = -kInfinity;
  for (size_t a = 0; a < count; ++a) {
    if (legal == nullptr || legal[a]) largest = std::max(largest, logits[a]);
  }
  mass = 0.0;
  for (size_t a = 0; a < count; ++a) {
    priors[a] = legal == nullptr || legal[a] ? std::exp(logits[a] - largest) : 0.0f;
    mass += priors[a];
  }
  for (size_t a = 0; a < count; ++a) priors[a] = static_cast<float>(priors[a] / mass);
  return largest;
}

void mix_noise(const float* noise, const uint8_t* legal, double fraction, size_t count, float* priors) {
  double sum = 0.0;
  for (size_t a = 0; a < count; ++a) sum += legal == nullptr || legal[a] ? noise[a] : 0.0f;
  for (size_t a = 0; a < count; ++a) {
    if (legal != nullptr && !legal[a]) continue;
    priors[a] = static_cast<float>((1.0 - fraction) * priors[a] + fraction * (noise[a] / sum));
  }
}

}  // namespace

void BatchedTree::reset_root(int index, const RootInput& input) {
  const size_t actions = config_.num_actions, offset = index * actions;
  const float* logits = input.logits + offset;
  const uint8_t* legal = input.legal == nullptr ? nullptr : input.legal + offset;
  const Block node = block(index, 0);
  *node.header = Node{};
  double mass;
  const float largest = masked_softmax(logits, legal, actions, node.open, mass);
  if (input.noise != nullptr) mix_noise(input.noise + offset, legal, input.noise_fraction, actions, node.open);
  for (size_t a = 0; a < padded_actions_; ++a) {
    const bool allowed = a < actions && (legal == nullptr || legal[a]);
    if (config_.policy == Policy::kPuct) {
      // A logit of -inf forbids the action, unless the noise has given it some probability.
      if (!allowed || (node.open[a] == 0.0f && logits[a] == -kInfinity)) node.open[a] = -kInfinity;
    } else {
      // The order in which Gumbel MuZero opens the root's actions is that of gumbel + logits.
      if (a < actions) root_logits_[offset + a] = allowed ? logits[a] - largest : -kInfinity;
      const float gumbel = allowed && input.gumbel != nullptr ? input.gumbel[offset + a] : 0.0f;
      node.open[a] = allowed ? std::max(kLowLogit, gumbel + root_logits_[offset + a]) : -kInfinity;
    }
    node->num_open += node.open[a] > -kInfinity;
  }
  node->has_priors = true;
  node->visits = 1;
  if (input.value != nullptr) node->raw_value = input.value[index], node->value_sum = input.value[index];

  Root& root = roots_[index];
  root.min_q = kInfinity, root.max_q = -kInfinity;
  root.inverse_mass = static_cast<float>(1.0 / mass);
  root.first_considered = static_cast<int32_t>(std::min<int64_t>(config_.max_considered_actions, node->num_open));
  root.considered = root.first_considered;
  root.considered_visits = root.position = root.rounds = 0;
  if (config_.policy == Policy::kPuct) {
    std::fill_n(edge_q_.begin() + index * bounds_stride_, bounds_stride_, std::numeric_limits<float>::quiet_NaN());
  }
}

// ---------------------------------------------------------------------------------------------------------- selection

void BatchedTree::select(int32_t* parent_slot, int32_t* action, int32_t* depth) {
  require_reset();
  if (stage_ == Stage::kSelected) {
    throw std::runtime_error("select() was already called: expand_and_backup() has to come first");
  }
  if (simulation_ == config_.num_simulations) {
    throw std::runtime_error("all " + std::to_string(simulation_) + " simulations are done: call reset() first");
  }
  for_each_root([&](int index, float* scratch) {
    if (config_.policy == Policy::kPuct) {
      select_leaf<Policy::kPuct>(index, scratch);
    } else {
      select_leaf<Policy::kGumbel>(index, scratch);
    }
    const Root& root = roots_[index];
    parent_slot[index] = root.leaf_parent;
    action[index] = root.leaf_action;
    depth[index] = block(index, root.leaf_parent)->depth + 1;
  });
  stage_ = Stage::kSelected;
}

template <Policy policy>
void BatchedTree::select_leaf(int index, float* scratch) {
  Root& root = roots_[index];
  // Soft min-max, EfficientZero's value_delta_max; with no spread at all the raw values are clipped instead.
  const float spread = root.max_q - root.min_q;
  root.low = spread > 0.0f ? root.min_q : 0.0f;
  root.scale = spread > 0.0f ? 1.0f / std::max({spread, static_cast<float>(config_.value_delta_max), 1e-30f}) : 1.0f;
  root.mean_q = 0.0;
  int slot = 0;
  while (true) {
    const Block node = block(index, slot);
    const bool is_root = slot == 0;
    if (!node->has_priors || !node->scanned) prepare(node, is_root);
    int pick;
    if constexpr (policy == Policy::kPuct) {
      pick = puct_pick(node, root, is_root, scratch);
    } else {
      pick = is_root ? gumbel_root_pick(node, root) : gumbel_interior_pick(node, scratch);
    }
    if (pick < 0) {
      root.leaf_parent = static_cast<uint16_t>(slot);
      root.leaf_action = static_cast<uint16_t>(~pick);
      return;
    }
    slot = node.child[pick];
  }
}

namespace {

// Turns a row of logits into probabilities, in place; -inf stays -inf, which marks it as never open. Returns the open.
int softmax_row(float* row, size_t padded) {
  Float4 top = broadcast4(-kInfinity);
  for (size_t a = 0; a < padded; a += kLanes) top = max4(top, load4(row + a));
  const Float4 largest = broadcast4(highest(top)), zero = broadcast4(0.0f), closed = broadcast4(-kInfinity);
  Float4 sums = zero, open = zero;
  for (size_t a = 0; a < padded; a += kLanes) {
    const Float4 logits = load4(row + a);
    const auto is_open = logits > closed;
    const Float4 weights = exp4(logits - largest);
    sums += is_open ? weights : zero;
    open += is_open ? broadcast4(1.0f) : zero;
    store4(row + a, is_open ? weights : closed);
  }
  const Float4 inverse = broadcast4(1.0f / total(sums));
  for (size_t a = 0; a < padded; a += kLanes) store4(row + a, load4(row + a) * inverse);
  return static_cast<int>(total(open));
}

struct OpenScan {
  float best, next, sum;
  int action;  // the first of the best
};

OpenScan scan_row(const float* row, size_t padded) {
  const Float4 closed = broadcast4(-kInfinity), zero = broadcast4(0.0f);
  Float4 top = closed;
  for (size_t a = 0; a < padded; a += kLanes) top = max4(top, load4(row + a));
  const float best = highest(top);
  Float4 second = closed, sums = zero;
  Int4 lanes = {0, 1, 2, 3}, first = lanes + 65536, count = {0, 0, 0, 0};
  for (size_t a = 0; a < padded; a += kLanes, lanes += kLanes) {
    const Float4 x = load4(row + a);
    const Int4 is_best = x == broadcast4(best);
    second = max4(second, is_best ? closed : x);
    sums += x > closed ? x : zero;
    first = is_best & (lanes < first) ? lanes : first;
    count -= is_best;
  }
  const int action = std::min(std::min(first[0], first[1]), std::min(first[2], first[3]));
  const bool alone = count[0] + count[1] + count[2] + count[3] == 1;
  return {best, alone ? highest(second) : best, total(sums), action};
}

}  // namespace

void BatchedTree::prepare(const Block& node, bool is_root) const {
  if (!node->has_priors) {
    node->num_open = static_cast<uint16_t>(softmax_row(node.open, padded_actions_));
    node->has_priors = true;
  }
  // The first descent through a node may be blind; then the scan can wait.
  const bool puct = config_.policy == Policy::kPuct;
  if (puct && config_.uniform_first_visit && node->visits == 1) return;
  const OpenScan open = scan_row(node.open, padded_actions_);
  node->open_action = static_cast<uint16_t>(open.action);
  node->open_best = puct || is_root ? open.best : open.best / std::max(open.sum, kTiny);
  node->open_next = puct || is_root ? open.next : std::log(open.sum);
  node->scanned = true;
}

namespace {

int nth_open(const float* open, int nth) {
  for (int a = 0;; ++a) {
    if (open[a] > -kInfinity && nth-- == 0) return a;
  }
}

}  // namespace

// algorithm.md 3.1, items 3-5. Returns a place among the visited children, or ~action for an open action.
int BatchedTree::puct_pick(const Block& node, Root& root, bool is_root, float* scores) const {
  const int child_visits = node->visits - 1, children = node->children;
  if (is_root) {
    root.mean_q = children > 0 ? node->weighted_q * reciprocal_[children] : 0.0;
  } else {
    root.mean_q = (root.mean_q + node->weighted_q) * reciprocal_[children + 1];
  }
  if (child_visits == 0 && config_.uniform_first_visit) {
    // The factor sqrt(0) leaves all actions with equal scores.
    return ~nth_open(node.open, config_.random_ties ? random_below(root.random, node->num_open) : 0);
  }
  const float c = exploration_[child_visits];
  const float open_q = clip01((static_cast<float>(root.mean_q) - root.low) * root.scale);
  const float open_score = c * node->open_best + open_q;
  const Float4 low = broadcast4(root.low), zero = broadcast4(0.0f), one = broadcast4(1.0f);
  Float4 top = broadcast4(open_score);
  for (int k = 0; k < children; k += kLanes) {
    const Float4 normalised = min4(max4((load4(node.q + k) - low) * root.scale, zero), one);
    const Float4 score = c * load4(node.u + k) + normalised;
    store4(scores + k, score);
    top = max4(top, score);
  }
  const float threshold = highest(top) - kTieTolerance;
  int count = 0, last = 0;
  for (int k = 0; k < children; ++k) {
    const int tied = scores[k] >= threshold;
    count += tied;
    last = tied ? k : last;
  }
  const bool open_tied = open_score >= threshold;
  if (count == 1 && !open_tied) return last;
  if (count == 0 && c * node->open_next + open_q < threshold) return ~node->open_action;

  // A tie: count all that take part, then take the n-th of them or the one with the lowest action.
  int open_count = 0, first_open = 65536;
  for (int a = 0; open_tied && a < config_.num_actions; ++a) {
    const bool tied = c * node.open[a] + open_q >= threshold;
    if (tied) first_open = std::min(first_open, a);
    open_count += tied;
  }
  int nth = config_.random_ties ? random_below(root.random, count + open_count) : 0;
  int lowest = -1;
  for (int k = 0; k < children; ++k) {
    if (scores[k] < threshold) continue;
    if (config_.random_ties && nth-- == 0) return k;
    if (lowest < 0 || node.action[k] < node.action[lowest]) lowest = k;
  }
  if (!config_.random_ties) return lowest >= 0 && node.action[lowest] < first_open ? lowest : ~first_open;
  for (int a = first_open;; ++a) {
    if (c * node.open[a] + open_q >= threshold && nth-- == 0) return ~a;
  }
}

namespace {

// The Q values of a node as Gumbel MuZero uses them: unvisited actions take `mixed`, then all are stretched to [0, 1]
// and multiplied by a scale that grows with the visits (Danihelka et al. 2022, section 3.4 and appendix D).
struct CompletedQ {
  float mixed, low, factor;
  float scaled(float q) const { return (q - low) * factor; }
};

template <typename Block>
CompletedQ complete(const Block& node, const Config& config) {
  const int children = node->children;
  const double visits = node->visits - 1;
  CompletedQ result;
  result.mixed = node->raw_value;
  if (children > 0) {
    const double visited_q = node->weighted_q / node->visited_prior;
    result.mixed = static_cast<float>((node->raw_value + visits * visited_q) / (visits + 1.0));
  }
  float low = kInfinity, high = -kInfinity;
  for (int k = 0; k < children; ++k) low = std::min(low, node.q[k]), high = std::max(high, node.q[k]);
  if (children < config.num_actions) low = std::min(low, result.mixed), high = std::max(high, result.mixed);
  result.low = low;
  const double scale = (config.c_visit + node->most_visits) * config.c_scale;
  result.factor = static_cast<float>(scale / std::max(high - low, static_cast<float>(config.min_q_range)));
  return result;
}

}  // namespace

// Sequential halving: among the actions with the visits that are now being handed out, the one with the best
// gumbel + logits + scaled Q.
int BatchedTree::gumbel_root_pick(const Block& node, Root& root) const {
  const int visits = root.considered_visits;
  if (root.rounds == 0) {
    if (visits > 0) root.considered = std::max(std::min(root.considered, 2), root.considered / 2);
    const int phases = std::max(1, static_cast<int>(std::ceil(std::log2(root.first_considered))));
    root.rounds = std::max<int>(1, static_cast<int>(config_.num_simulations) / (phases * root.considered));
  }
  if (++root.position == root.considered) root.position = 0, ++root.considered_visits, --root.rounds;
  if (visits == 0) return ~node->open_action;

  const CompletedQ completed = complete(node, config_);
  float best = -kInfinity;
  int pick = 0;
  for (int k = 0; k < node->children; ++k) {
    if (node.n[k] != visits) continue;
    const float score = std::max(kLowLogit, node.u[k] + completed.scaled(node.q[k]));
    if (score > best || (score == best && node.action[k] < node.action[pick])) best = score, pick = k;
  }
  return pick;
}

// Below the root: the action that lags furthest behind the improved policy.
int BatchedTree::gumbel_interior_pick(const Block& node, float* weights) const {
  const int children = node->children;
  if (children == 0) return ~node->open_action;
  const CompletedQ completed = complete(node, config_);
  const float open_logit = node->open_next + completed.scaled(completed.mixed);
  float largest = open_logit;
  for (int k = 0; k < children; ++k) {
    weights[k] = node.u[k] + completed.scaled(node.q[k]);
    largest = std::max(largest, weights[k]);
  }
  const float open_weight = exp4(broadcast4(open_logit - largest))[0];
  float sum = open_weight;
  for (int k = 0; k < children; k += kLanes) store4(weights + k, exp4(load4(weights + k) - largest));
  for (int k = 0; k < children; ++k) sum += weights[k];

  const float share = 1.0f / sum, visit_share = 1.0f / node->visits;
  float best = node->open_best * open_weight * share;
  int pick = ~node->open_action, action = node->open_action;
  if (node->num_open == 0) best = -kInfinity;
  for (int k = 0; k < children; ++k) {
    const float score = weights[k] * share - node.n[k] * visit_share;
    if (score > best || (score == best && node.action[k] < action)) best = score, pick = k, action = node.action[k];
  }
  return pick;
}

// ------------------------------------------------------------------------------------------------ expansion and backup

void BatchedTree::expand_and_backup(const float* value_prefix, const float* value, const float* logits) {
  require_reset();
  if (stage_ != Stage::kSelected) throw std::runtime_error("expand_and_backup() needs a leaf: call select() first");
  check_network(value_prefix, value, logits);
  for_each_root([&](int root, float*) {
    const float* row = logits + root * config_.num_actions;
    if (config_.policy == Policy::kPuct) {
      expand<Policy::kPuct>(root, value_prefix[root], value[root], row);
    } else {
      expand<Policy::kGumbel>(root, value_prefix[root], value[root], row);
    }
  });
  ++simulation_;
  stage_ = Stage::kReady;
}

template <Policy policy>
void BatchedTree::expand(int index, float value_prefix, float value, const float* logits) {
  const Root& root = roots_[index];
  const int slot = simulation_ + 1, action = root.leaf_action, k = block(index, root.leaf_parent)->children;
  const Block parent = block(index, root.leaf_parent), node = block(index, slot);
  const bool gumbel_root = policy == Policy::kGumbel && root.leaf_parent == 0;
  float prior = parent.open[action], term = prior;
  if constexpr (policy == Policy::kGumbel) {
    if (gumbel_root) {
      const float logit = root_logits_[index * config_.num_actions + action];
      term = logit == -kInfinity ? logit : prior;
      prior = std::exp(logit) * root.inverse_mass;
    } else {
      term = std::log(std::max(prior, kTiny));
    }
    prior = std::max(prior, kTiny);
    parent->visited_prior += prior;
  }
  parent.open[action] = -kInfinity;
  --parent->num_open;
  parent->scanned = false;
  ++parent->children;
  if (k % kLanes == 0) {  // Lanes behind the last child lose every comparison.
    store4(parent.u + k, broadcast4(-kInfinity));
    store4(parent.q + k, broadcast4(0.0f));
  }
  parent.u[k] = term;
  parent.q[k] = 0.0f;
  parent.child[k] = static_cast<uint16_t>(slot);
  parent.action[k] = static_cast<uint16_t>(action);

  *node.header = Node{};
  // EfficientZero App. A: the LSTM starts anew every `horizon` steps, and with it the sum of rewards it predicts.
  const bool restarted = parent->depth > 0 && parent->depth % static_cast<int>(config_.horizon) == 0;
  node->reward = restarted ? value_prefix : value_prefix - parent->value_prefix;
  node->value_prefix = value_prefix;
  node->raw_value = value;
  node->prior = prior;
  node->parent = root.leaf_parent;
  node->action = root.leaf_action;
  node->edge = static_cast<uint16_t>(k);
  node->depth = parent->depth + 1;
  std::copy_n(logits, config_.num_actions, node.open);
  std::fill(node.open + config_.num_actions, node.open + padded_actions_, -kInfinity);
  backup<policy>(index, slot, value);
}

template <Policy policy>
void BatchedTree::backup(int index, int slot, double value) {
  Root& root = roots_[index];
  float* edge_q = edge_q_.data() + index * bounds_stride_;
  bool rescan = false;
  Block node = block(index, slot);
  while (true) {
    node->value_sum += value;
    ++node->visits;
    if (slot == 0) break;
    const Block parent = block(index, node->parent);
    const int k = node->edge;
    const double mean = node->value_sum * reciprocal_[node->visits];
    const float q = static_cast<float>(node->reward + config_.discount * mean), old = parent.q[k];
    parent.q[k] = q;
    if constexpr (policy == Policy::kPuct) {
      parent->weighted_q += static_cast<double>(q) - old;
      parent.u[k] = node->prior * static_cast<float>(reciprocal_[node->visits + 1]);
      // The bounds follow the current Q values; only an extreme that moved inwards calls for a new search of it.
      rescan |= (edge_q[slot] == root.max_q && q < root.max_q) || (edge_q[slot] == root.min_q && q > root.min_q);
      edge_q[slot] = q;
      root.max_q = std::max(root.max_q, q);
      root.min_q = std::min(root.min_q, q);
    } else {
      parent->weighted_q += node->prior * (static_cast<double>(q) - old);
      parent.n[k] = static_cast<float>(node->visits);
      parent->most_visits = std::max(parent->most_visits, node->visits);
    }
    value = node->reward + config_.discount * value;
    slot = node->parent;
    node = parent;
  }
  if (rescan) rescan_bounds(index);
}

void BatchedTree::rescan_bounds(int index) {
  const float* edge_q = edge_q_.data() + index * bounds_stride_;
  Float4 high = broadcast4(-kInfinity), low = broadcast4(kInfinity);
  for (int slot = 0; slot <= simulation_ + 1; slot += kLanes) {
    const Float4 q = load4(edge_q + slot);
    high = max4(high, q);
    low = min4(low, q);
  }
  roots_[index].max_q = highest(high);
  roots_[index].min_q = lowest(low);
}

// ------------------------------------------------------------------------------------------------------------ results

void BatchedTree::visit_counts(int32_t* out) const {
  require_reset();
  std::fill_n(out, config_.num_roots * config_.num_actions, 0);
  for (int root = 0; root < config_.num_roots; ++root, out += config_.num_actions) {
    const Block node = block(root, 0);
    for (int k = 0; k < node->children; ++k) out[node.action[k]] = block(root, node.child[k])->visits;
  }
}

void BatchedTree::root_values(float* out) const {
  require_reset();
  for (int root = 0; root < config_.num_roots; ++root) {
    const Block node = block(root, 0);
    out[root] = static_cast<float>(node->value_sum / node->visits);
  }
}

void BatchedTree::qvalues(float* out) const {
  require_reset();
  for (int root = 0; root < config_.num_roots; ++root, out += config_.num_actions) {
    const Block node = block(root, 0);
    const bool gumbel = config_.policy == Policy::kGumbel;
    std::fill_n(out, config_.num_actions, gumbel ? complete(node, config_).mixed : 0.0f);
    for (int k = 0; k < node->children; ++k) out[node.action[k]] = node.q[k];
  }
}

void BatchedTree::improved_policy(float* out) const {
  require_reset();
  const int actions = static_cast<int>(config_.num_actions);
  std::vector<float> logits(actions);
  for (int root = 0; root < config_.num_roots; ++root, out += actions) {
    const Block node = block(root, 0);
    if (config_.policy == Policy::kGumbel) {
      const CompletedQ completed = complete(node, config_);
      const float* prior_logits = root_logits_.data() + root * config_.num_actions;
      for (int a = 0; a < actions; ++a) logits[a] = prior_logits[a] + completed.scaled(completed.mixed);
      for (int k = 0; k < node->children; ++k) {
        logits[node.action[k]] = prior_logits[node.action[k]] + completed.scaled(node.q[k]);
      }
      double mass;
      masked_softmax(logits.data(), nullptr, actions, out, mass);
      continue;
    }
    // Before the first simulation there is only the prior to go by.
    for (int a = 0; a < actions; ++a) out[a] = simulation_ == 0 ? std::max(node.open[a], 0.0f) : 0.0f;
    for (int k = 0; k < node->children; ++k) {
      out[node.action[k]] = static_cast<float>(block(root, node.child[k])->visits) / simulation_;
    }
  }
}

void BatchedTree::selected_actions(int32_t* out) const {
  require_reset();
  for (int root = 0; root < config_.num_roots; ++root) {
    const Block node = block(root, 0);
    if (node->children == 0) {
      out[root] = scan_row(node.open, padded_actions_).action;
      continue;
    }
    const bool gumbel = config_.policy == Policy::kGumbel;
    const CompletedQ completed = gumbel ? complete(node, config_) : CompletedQ{};
    double best = -kInfinity;
    for (int k = 0; k < node->children; ++k) {
      const int visits = block(root, node.child[k])->visits;
      if (gumbel && visits != node->most_visits) continue;
      const double score = gumbel ? std::max(kLowLogit, node.u[k] + completed.scaled(node.q[k])) : visits;
      if (score > best || (score == best && node.action[k] < out[root])) best = score, out[root] = node.action[k];
    }
  }
}

void BatchedTree::node_table(int64_t root, const NodeTable& out) const {
  require_reset();
  check_range("root", root, 0, config_.num_roots - 1);
  for (int slot = 0; slot <= simulation_; ++slot) {
    const Block node = block(static_cast<int>(root), slot);
    out.parent[slot] = slot == 0 ? -1 : node->parent;
    out.action[slot] = slot == 0 ? -1 : node->action;
    out.depth[slot] = node->depth;
    out.visits[slot] = node->visits;
    out.value[slot] = static_cast<float>(node->value_sum / node->visits);
    out.reward[slot] = node->reward;
    out.prior[slot] = slot == 0 ? 1.0f : node->prior;
  }
}

}  // namespace efficientzero
