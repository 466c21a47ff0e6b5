// pUCT as in EfficientZero (Ye et al. 2021, appendix A): Q values are normalised by the extremes of the tree. Unvisited
// actions get the mean of their visited siblings' Q values and of the same mean one level up. The first descent through
// a node ignores the prior (`uniform_first_visit`).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "config.hpp"
#include "random.hpp"
#include "storage.hpp"

namespace efficientzero {

class Puct {
 public:
  struct alignas(64) Node : NodeBase {
    float inverse_sum = 0.0f;  // 1 / sum of all weights: weight * inverse_sum is the prior
    float open_best = 0.0f;    // the largest open weight
    bool all_open = false;     // no logit is -inf
  };
  struct alignas(16) Group {  // The initial values make lanes without a child lose every comparison.
    Float4 u = broadcast4(-kInfinity);  // weight / (1 + visits)
    Float4 q = broadcast4(0.0f);
    uint16_t child[kLanes] = {}, action[kLanes] = {};
  };
  struct Root {
    uint64_t random;
    float min_q, max_q;
    uint16_t groups_moved_to;
    bool extreme_left;  // an edge with an extreme Q value has changed inwards: min_q and max_q have to be found anew
  };
  struct Descent {
    Node* node;
    double mean_q;
    float low, scale;  // normalised Q = (Q - low) * scale
    float c;           // factor of u
    float open_q;      // normalised Q of every open action
    float threshold;   // scores of at least this tie for the best
    int slot, place, tied_children;
    bool open_tied;  // the best open action reaches the threshold
  };
  using AllTrees = Trees<Node, Group>;

  explicit Puct(const Config& config)
      : config_(config),
        reciprocal_(reciprocals(config.num_simulations + 3)),
        bounds_stride_(4 * pad(config.num_simulations / 4 + 1)),
        edge_q_(config.num_roots * bounds_stride_) {
    for (int64_t n = 0; n <= config.num_simulations; ++n) {
      const double factor = config.pb_c_init + std::log((n + config.pb_c_base + 1.0) / config.pb_c_base);
      exploration_.push_back(static_cast<float>(std::max(factor * std::sqrt(std::max<double>(n, 1.0)), 1e-30)));
    }
  }

  size_t nbytes() const {
    return (exploration_.size() + edge_q_.size()) * sizeof(float) + reciprocal_.size() * sizeof(double);
  }

  void reseed(size_t index, Root& root, uint64_t seed) const {
    root.random = root_stream(seed, config_.first_root + index);
  }

  // On entry, the root's row holds the logits, -inf for illegal actions.
  void reset(const AllTrees& trees, size_t index, Root& root, const RootInput& input) {
    const size_t padded = trees.padded_actions;
    float* row = trees.row(index, 0);
    const float inverse = 1.0f / weigh(row, padded, -1).open_sum;
    for (size_t a = 0; a < padded; ++a) row[a] *= inverse;
    if (input.noise != nullptr) mix_noise(input, index, row);
    Node& node = trees.node(index, 0);
    node.inverse_sum = 1.0f;
    node.open_best = open_best(row, padded);
    node.all_open = count_open(row, padded, 0.0f) == config_.num_actions;
    node.state = config_.uniform_first_visit ? State::kFresh : State::kNarrow;
    root.min_q = kInfinity, root.max_q = -kInfinity, root.extreme_left = false;
    std::fill_n(edge_q_.begin() + index * bounds_stride_, bounds_stride_, std::numeric_limits<float>::quiet_NaN());
  }

  void make_leaf(Node& node, float, const LogitsFound& logits) const {
    node.all_open = logits.all_open;
    node.state = config_.uniform_first_visit ? State::kFresh : State::kLogits;
  }

  State begin_descent(Descent& descent, Root& root) const {
    // If all Q values are equal, the raw values are clipped to [0, 1] instead of normalised.
    const float spread = root.max_q - root.min_q, floor = static_cast<float>(config_.value_delta_max);
    descent.low = spread > 0.0f ? root.min_q : 0.0f;
    descent.scale = spread > 0.0f ? 1.0f / std::max({spread, floor, 1e-30f}) : 1.0f;
    descent.mean_q = 0.0;
    return descent.node->state;
  }

  // Without visits, the factor sqrt(0) gives all open actions equal scores: any of them, or the first.
  int first_action(const AllTrees& trees, const Node& node, const float* row, Root& root) const {
    const size_t padded = trees.padded_actions;
    const int open = node.all_open ? static_cast<int>(config_.num_actions) : count_open(row, padded, -kLargestFloat);
    const int nth = config_.random_ties ? random_below(root.random, open) : 0;
    return node.all_open ? nth : nth_open(row, padded, -kLargestFloat, nth);
  }

  void weigh_row(const AllTrees& trees, size_t index, Node& node, float* row) const {
    Group& group = *trees.groups_of(node);
    const Weights weights = weigh(row, trees.padded_actions, node.children > 0 ? group.action[0] : -1);
    node.open_best = weights.open_best;
    node.inverse_sum = 1.0f / (weights.taken + weights.open_sum);
    if (node.children == 0) {
      group = Group{};
      return;
    }
    trees.node(index, group.child[0]).weight = weights.taken;
    group.u[0] = weights.taken * static_cast<float>(reciprocal_[node.visits]);  // The child has node.visits - 1 visits.
  }

  // True if exactly one action has the best score and it is a visited one; its place is `descent.place`.
  template <bool wide>
  bool pick_child(const AllTrees& trees, size_t, Descent& descent, bool is_root, Float4* scratch) const {
    const Node& node = *descent.node;
    descent.mean_q = (descent.mean_q + node.weighted_q) * reciprocal_[node.children + !is_root];
    descent.c = exploration_[node.visits - 1] * node.inverse_sum;
    descent.open_q = clip01((static_cast<float>(descent.mean_q) - descent.low) * descent.scale);
    const float open_score = descent.c * node.open_best + descent.open_q;

    Float4 one_group[1];
    Float4* scores = wide ? scratch : one_group;
    const int count = wide ? num_groups(node.children) : 1;
    Float4 top = broadcast4(open_score);
    for (int i = 0; i < count; ++i) top = max4(top, scores[i] = score(trees.groups_of(node)[i], descent));
    descent.threshold = highest(top) - kTieTolerance;
    int tied = 0, place = 0;
    for (int i = 0; i < count; ++i) {
      const int bits = bits4(scores[i] >= descent.threshold);
      tied += count_bits4(bits);
      place |= -(bits != 0) & (i * kLanes + first_lane(bits));  // Correct if there is only one; avoids a branch.
    }
    descent.place = place;
    descent.tied_children = tied;
    descent.open_tied = open_score >= descent.threshold;
    return (tied == 1) & !descent.open_tied;
  }

  // If pick_child() returned false: an unvisited action, or -1 for the visited one at `descent.place`. Ties are rare,
  // except between open actions.
  int pick_other(const AllTrees& trees, Descent& descent, const float* row, Root& root) const {
    const Node& node = *descent.node;
    const size_t padded = trees.padded_actions;
    int tied = descent.tied_children, open = 0;
    float least = kInfinity;  // the smallest weight with which an open action reaches the threshold
    if (descent.open_tied) {
      least = std::min(std::max((descent.threshold - descent.open_q) / descent.c, 0.0f), node.open_best);
      if (tied == 0 && padded <= 64) {
        const uint64_t bits = open_bits(row, 0, padded, least);
        if ((bits & (bits - 1)) == 0) return __builtin_ctzll(bits);
      }
      open = count_open(row, padded, least);
    }
    if (config_.random_ties) {
      const int nth = open + tied > 1 ? random_below(root.random, open + tied) : 0;
      if (nth >= tied) return nth_open(row, padded, least, nth - tied);
      descent.place = nth_tied_child(trees, descent, nth);
      return -1;
    }
    int action = open > 0 ? nth_open(row, padded, least, 0) : kNoAction, result = action;
    while (tied-- > 0) {
      const int place = nth_tied_child(trees, descent, tied);
      const int other = trees.group_of(node, place).action[place % kLanes];
      if (other < action) action = other, descent.place = place, result = -1;
    }
    return result;
  }

  // Closes `action` of a row of weights; it now leads to the child `node`.
  void close_action(const AllTrees& trees, size_t, const Root&, Node& parent, Node& node, int action,
                    float* row) const {
    node.weight = row[action];
    row[action] = -kInfinity;
    parent.open_best = open_best(row, trees.padded_actions);
  }

  // Sets the Q value of the edge from `parent` to `node`, after the node's visits and value have changed.
  void update_edge(Node& parent, Group& group, const Node& node, float q, size_t index, int slot, Root& root) {
    float& known_q = edge_q_[index * bounds_stride_ + slot];
    // min_q and max_q are those of the current Q values; they are searched anew only if an extreme moved inwards.
    const float max_q = root.max_q, min_q = root.min_q;
    root.extreme_left |= ((known_q >= max_q) & (q < max_q)) | ((known_q <= min_q) & (q > min_q));
    root.max_q = std::max(max_q, q);
    root.min_q = std::min(min_q, q);
    known_q = q;
    const int lane = node.edge % kLanes;
    parent.weighted_q += static_cast<double>(q) - group.q[lane];
    group.q[lane] = q;
    group.u[lane] = node.weight * static_cast<float>(reciprocal_[node.visits + 1]);
  }

  void end_backup(size_t index, Root& root, int last_slot) const {
    if (!root.extreme_left) return;
    root.extreme_left = false;
    const float* edge_q = edge_q_.data() + index * bounds_stride_;
    // Four independent maxima and minima: a single one would be a chain of dependent operations.
    Float4 high[4], low[4];
    std::fill_n(high, 4, broadcast4(-kInfinity));
    std::fill_n(low, 4, broadcast4(kInfinity));
    for (int slot = 0; slot <= last_slot; slot += 4 * kLanes) {
      for (int i = 0; i < 4; ++i) {
        const Float4 q = load4(edge_q + slot + i * kLanes);
        high[i] = max4(high[i], q);
        low[i] = min4(low[i], q);
      }
    }
    root.max_q = highest(max4(max4(high[0], high[1]), max4(high[2], high[3])));
    root.min_q = lowest(min4(min4(low[0], low[1]), min4(low[2], low[3])));
  }

  double reciprocal(int n) const { return reciprocal_[n]; }

  // Results.

  float unvisited_q(const AllTrees&, const Node&) const { return 0.0f; }

  void improved_policy(const AllTrees& trees, size_t index, float* out) const {
    const Node& node = trees.node(index, 0);
    const float* row = trees.row(index, 0);
    // Before the first simulation, the improved policy is the prior.
    for (int64_t a = 0; a < config_.num_actions; ++a) out[a] = node.children == 0 ? std::max(row[a], 0.0f) : 0.0f;
    for (int place = 0; place < node.children; ++place) {
      const Group& group = trees.group_of(node, place);
      const int visits = trees.node(index, group.child[place % kLanes]).visits;
      out[group.action[place % kLanes]] = static_cast<float>(visits) / static_cast<float>(node.visits - 1);
    }
  }

  // The place of the root's action that the search finally selects, which is a visited one.
  int final_place(const AllTrees& trees, size_t index, const Node& node) const {
    int best = 0, best_visits = 0, best_action = kNoAction;
    for (int place = 0; place < node.children; ++place) {
      const Group& group = trees.group_of(node, place);
      const int visits = trees.node(index, group.child[place % kLanes]).visits, action = group.action[place % kLanes];
      if (visits < best_visits || (visits == best_visits && action > best_action)) continue;
      best = place, best_visits = visits, best_action = action;
    }
    return best;
  }

 private:
  static constexpr float kTieTolerance = 1e-6f;  // As in the paper's code: scores this close to the best one tie.
  static constexpr int kNoAction = 65536;

  static float clip01(float x) { return std::min(std::max(x, 0.0f), 1.0f); }

  void mix_noise(const RootInput& input, size_t index, float* row) const {
    const size_t actions = config_.num_actions;
    const float* logits = input.logits + index * actions;
    const uint8_t* legal = input.legal == nullptr ? nullptr : input.legal + index * actions;
    const float* noise = input.noise + index * actions;
    double sum = 0.0;
    for (size_t a = 0; a < actions; ++a) sum += legal == nullptr || legal[a] ? noise[a] : 0.0f;
    const float keep = static_cast<float>(1.0 - input.noise_fraction);
    const float share = static_cast<float>(input.noise_fraction / sum);
    for (size_t a = 0; a < actions; ++a) {
      if (legal != nullptr && !legal[a]) continue;
      // A logit of -inf forbids the action, unless the noise gives it some probability.
      const float prior = keep * std::max(row[a], 0.0f) + share * noise[a];
      row[a] = prior > 0.0f || logits[a] > -kInfinity ? prior : -kInfinity;
    }
  }

  static Float4 score(const Group& group, const Descent& descent) {
    const Float4 q = (group.q - descent.low) * descent.scale;
    return descent.c * group.u + min4(max4(q, broadcast4(0.0f)), broadcast4(1.0f));
  }

  // The place of the n-th of the visited children whose score reaches the threshold.
  static int nth_tied_child(const AllTrees& trees, const Descent& descent, int n) {
    const Group* groups = trees.groups_of(*descent.node);
    for (int place = 0;; place += kLanes) {
      for (int bits = bits4(score(groups[place / kLanes], descent) >= descent.threshold); bits != 0; bits &= bits - 1) {
        if (n-- == 0) return place + first_lane(bits);
      }
    }
  }

  const Config config_;
  const std::vector<double> reciprocal_;
  std::vector<float> exploration_;  // [N + 1] factor by n, the sum of the visits of a node's children
  const size_t bounds_stride_;
  std::vector<float> edge_q_;  // [B, padded N + 1] Q of the edge into each node, NaN if there is none yet
};

}  // namespace efficientzero
