// Gumbel MuZero (Danihelka et al. 2022): sequential halving at the root; below it, the action whose share of the visits
// is furthest below its probability in the improved policy. The same search as `mctx.gumbel_muzero_policy`.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "config.hpp"
#include "storage.hpp"

namespace efficientzero {

class Gumbel {
 public:
  struct alignas(64) Node : NodeBase {
    float raw_value = 0.0f;       // the network's value of this node
    float visited_weight = 0.0f;  // sum of the weights of visited children
    float open_best = 0.0f;       // the largest open weight
    float open_sum = 0.0f;        // sum of all open weights
    uint16_t most_visits = 0;     // visits of the most visited child
  };
  struct alignas(64) Group {  // The initial values make lanes without a child lose every comparison.
    Float4 u = broadcast4(-kInfinity);  // logarithm of the weight; at the root gumbel + logit
    Float4 q = broadcast4(std::numeric_limits<float>::quiet_NaN());
    Float4 n = broadcast4(kInfinity);  // visits
    uint16_t child[kLanes] = {}, action[kLanes] = {};
  };
  // State of sequential halving: the number of actions considered at first and now, the visits that each of them had
  // before this round, the number of actions already visited in this round, and the rounds left in this phase.
  struct Root {
    int32_t first_considered, considered, considered_visits, position, rounds;
    float inverse_sum;  // 1 / sum exp(root_logits)
    uint16_t groups_moved_to;
  };
  struct Descent {
    Node* node;
    int slot, place;
    int considered_visits;
  };
  using AllTrees = Trees<Node, Group>;

  explicit Gumbel(const Config& config)
      : config_(config),
        reciprocal_(reciprocals(config.num_simulations + 3)),
        root_logits_(config.num_roots * config.num_actions) {}

  size_t nbytes() const { return root_logits_.size() * sizeof(float) + reciprocal_.size() * sizeof(double); }

  void reseed(size_t, Root&, uint64_t) const {}

  // On entry, the root's row holds the logits, -inf for illegal actions.
  void reset(const AllTrees& trees, size_t index, Root& root, const RootInput& input) {
    const size_t actions = config_.num_actions;
    float* row = trees.row(index, 0);
    float* logits = root_logits_.data() + index * actions;
    std::copy_n(row, actions, logits);
    const Weights weights = weigh(row, trees.padded_actions, -1);
    int legal = 0;
    for (size_t a = 0; a < actions; ++a) {
      const bool allowed = input.legal == nullptr || input.legal[index * actions + a];
      const float gumbel = input.gumbel != nullptr ? input.gumbel[index * actions + a] : 0.0f;
      legal += allowed;
      logits[a] -= weights.largest_logit;
      // The root's row has no weights but scores: its actions get their first visits in the order of these.
      row[a] = allowed ? std::max(kLowLogit, gumbel + logits[a]) : -kInfinity;
    }
    Node& node = trees.node(index, 0);
    node.raw_value = input.value[index];
    node.state = State::kNarrow;
    root.inverse_sum = 1.0f / weights.open_sum;
    root.first_considered = static_cast<int32_t>(std::min<int64_t>(config_.max_considered_actions, legal));
    root.considered = root.first_considered;
    root.considered_visits = root.position = root.rounds = 0;
  }

  void make_leaf(Node& node, float value, const LogitsFound&) const {
    node.raw_value = value;
    node.state = State::kFresh;
  }

  State begin_descent(Descent& descent, Root& root) const {
    const int visits = descent.considered_visits = root.considered_visits;
    if (root.rounds == 0) {
      if (visits > 0) root.considered = std::max(std::min(root.considered, 2), root.considered / 2);
      const int phases = std::max(1, static_cast<int>(std::ceil(std::log2(root.first_considered))));
      root.rounds = std::max<int>(1, static_cast<int>(config_.num_simulations) / (phases * root.considered));
    }
    if (++root.position == root.considered) root.position = 0, ++root.considered_visits, --root.rounds;
    return visits == 0 ? State::kFresh : descent.node->state;
  }

  // The action with the largest logit, or at the root the largest gumbel + logit.
  int first_action(const AllTrees& trees, const Node&, const float* row, Root&) const {
    return first_best(row, trees.padded_actions);
  }

  void weigh_row(const AllTrees& trees, size_t index, Node& node, float* row) const {
    Group& group = *trees.groups_of(node);
    const float logit = row[group.action[0]];
    const Weights weights = weigh(row, trees.padded_actions, group.action[0]);
    node.open_best = weights.open_best;
    node.open_sum = weights.open_sum;
    node.visited_weight = weights.taken;
    node.weighted_q = static_cast<double>(weights.taken) * group.q[0];
    trees.node(index, group.child[0]).weight = weights.taken;
    group.u[0] = logit - weights.largest_logit;
  }

  // True if the next action is a visited one; its place is `descent.place`.
  template <bool wide>
  bool pick_child(const AllTrees& trees, size_t index, Descent& descent, bool is_root, Float4* scratch) const {
    Float4 one_group[1];
    Float4* scores = wide ? scratch : one_group;
    const int count = wide ? num_groups(descent.node->children) : 1;
    const Group* groups = trees.groups_of(*descent.node);
    if (!is_root) return pick_lagging(trees, index, groups, count, descent, scores);
    descent.place = best_considered(groups, count, *descent.node, descent.considered_visits, scores);
    return true;
  }

  // If pick_child() returned false: the best unvisited action.
  int pick_other(const AllTrees& trees, Descent& descent, const float* row, Root&) const {
    return nth_open(row, trees.padded_actions, descent.node->open_best, 0);
  }

  // Closes `action`, which now leads to the child `node`.
  void close_action(const AllTrees& trees, size_t index, const Root& root, Node& parent, Node& node, int action,
                    float* row) const {
    float& u = trees.group_of(parent, node.edge).u[node.edge % kLanes];
    const float weight = row[action];
    row[action] = -kInfinity;
    if (node.parent == 0) {
      const float logit = root_logits_[index * config_.num_actions + action];
      u = logit == -kInfinity ? logit : weight;
      node.weight = std::max(std::exp(logit) * root.inverse_sum, kTiny);
    } else {
      u = std::log(weight);
      node.weight = weight;
      parent.open_best = open_best(row, trees.padded_actions);
      parent.open_sum = open_sum(row, trees.padded_actions);
    }
    parent.visited_weight += node.weight;
  }

  // Sets the Q value of the edge from `parent` to `node`, after the node's visits and value have changed.
  void update_edge(Node& parent, Group& group, const Node& node, float q, size_t, int, Root&) const {
    const int lane = node.edge % kLanes;
    const float old = node.visits == 1 ? 0.0f : group.q[lane];
    parent.weighted_q += node.weight * (static_cast<double>(q) - old);
    parent.most_visits = std::max(parent.most_visits, node.visits);
    group.q[lane] = q;
    group.n[lane] = node.visits;
  }

  void end_backup(size_t, Root&, int) const {}

  double reciprocal(int n) const { return reciprocal_[n]; }

  // Results.

  float unvisited_q(const AllTrees& trees, const Node& node) const {
    return complete(trees.groups_of(node), num_groups(node.children), node).mixed;
  }

  void improved_policy(const AllTrees& trees, size_t index, float* out) const {
    const Node& node = trees.node(index, 0);
    const CompletedQ completed = complete(trees.groups_of(node), num_groups(node.children), node);
    const int64_t actions = config_.num_actions;
    const float* logits = root_logits_.data() + index * actions;
    std::vector<float> row(trees.padded_actions, -kInfinity);
    for (int64_t a = 0; a < actions; ++a) row[a] = logits[a] + completed.scaled(completed.mixed);
    for (int place = 0; place < node.children; ++place) {
      const Group& group = trees.group_of(node, place);
      const int action = group.action[place % kLanes];
      row[action] = logits[action] + completed.scaled(group.q[place % kLanes]);
    }
    const float inverse = 1.0f / weigh(row.data(), row.size(), -1).open_sum;
    for (int64_t a = 0; a < actions; ++a) out[a] = std::max(row[a] * inverse, 0.0f);
  }

  // The place of the root's action that the search finally selects, which is a visited one.
  int final_place(const AllTrees& trees, size_t, const Node& node) const {
    std::vector<Float4> scores(num_groups(node.children));
    const int count = static_cast<int>(scores.size());
    return best_considered(trees.groups_of(node), count, node, node.most_visits, scores.data());
  }

 private:
  static constexpr float kLowLogit = -1e9f;  // As in mctx: below every real score, above that of an illegal action.
  static constexpr int kNoAction = 65536;
  static constexpr float kTiny = std::numeric_limits<float>::min();

  // Completes and scales the Q values of a node: unvisited actions get the Q value `mixed`, then all are normalised to
  // [0, 1] and multiplied by a scale that grows with the visits (section 3.4 and appendix D).
  struct CompletedQ {
    float mixed, low, factor;
    template <typename Value>
    Value scaled(Value q) const {
      return (q - low) * factor;
    }
  };

  CompletedQ complete(const Group* groups, int count, const Node& node) const {
    CompletedQ result;
    result.mixed = node.raw_value;
    if (node.children > 0) {
      const double visited_q = node.weighted_q / node.visited_weight;
      result.mixed = static_cast<float>((node.raw_value + (node.visits - 1) * visited_q) * reciprocal_[node.visits]);
    }
    Float4 low = broadcast4(kInfinity), high = broadcast4(-kInfinity);
    if (node.children < config_.num_actions) low = high = broadcast4(result.mixed);
    for (int i = 0; i < count; ++i) low = min4(low, groups[i].q), high = max4(high, groups[i].q);
    result.low = lowest(low);
    const float range = std::max(highest(high) - result.low, static_cast<float>(config_.min_q_range));
    result.factor = static_cast<float>((config_.c_visit + node.most_visits) * config_.c_scale) / range;
    return result;
  }

  // Among the root's actions with exactly `visits` visits, the place of the best gumbel + logit + scaled Q.
  int best_considered(const Group* groups, int count, const Node& node, int visits, Float4* scores) const {
    const CompletedQ completed = complete(groups, count, node);
    const Float4 considered = broadcast4(static_cast<float>(visits)), closed = broadcast4(-kInfinity);
    Float4 best = closed;
    for (int i = 0; i < count; ++i) {
      const Float4 score = max4(broadcast4(kLowLogit), groups[i].u + completed.scaled(groups[i].q));
      best = max4(best, scores[i] = groups[i].n == considered ? score : closed);
    }
    return first_equal(groups, count, scores, highest(best));
  }

  bool pick_lagging(const AllTrees& trees, size_t index, const Group* groups, int count, Descent& descent,
                    Float4* scores) const {
    const Node& node = *descent.node;
    const CompletedQ completed = complete(groups, count, node);
    const float open_q = completed.scaled(completed.mixed);
    // Logits of the improved policy, with all open actions combined into one; they are shifted so that the largest is
    // roughly 0. If no action is open, `mixed` is left out: it may lie far outside the Q values of the children.
    Float4 top = broadcast4(node.open_sum > 0.0f ? rough_log(node.open_sum) + open_q : -kInfinity);
    for (int i = 0; i < count; ++i) top = max4(top, scores[i] = groups[i].u + completed.scaled(groups[i].q));
    const float largest = highest(top), open_factor = exp4(broadcast4(open_q - largest))[0];
    Float4 sums = broadcast4(0.0f);
    for (int i = 0; i < count; ++i) sums += scores[i] = exp4(scores[i] - largest);
    const float sum = total(sums) + open_factor * node.open_sum;
    // Scores are (improved policy - share of the visits), multiplied by sum * visits to avoid divisions.
    const float visits = node.visits, open_score = open_factor * node.open_best * visits;
    Float4 best = broadcast4(-kInfinity);
    for (int i = 0; i < count; ++i) best = max4(best, scores[i] = scores[i] * visits - groups[i].n * sum);
    const float best_score = highest(best);
    descent.place = first_equal(groups, count, scores, best_score);
    if (open_score != best_score) return open_score < best_score;
    const float* row = trees.row(index, descent.slot);
    return groups[descent.place / kLanes].action[descent.place % kLanes] < first_best(row, trees.padded_actions);
  }

  // The place with the given score; of several, the one with the lowest action.
  static int first_equal(const Group* groups, int count, const Float4* scores, float score) {
    int equal = 0, place = 0;
    for (int i = 0; i < count; ++i) {
      const int bits = bits4(scores[i] == score);
      equal += count_bits4(bits);
      place |= -(bits != 0) & (i * kLanes + first_lane(bits));  // Correct if there is only one; avoids a branch.
    }
    if (equal == 1) return place;
    int action = kNoAction;
    for (int i = place = 0; i < count * kLanes; ++i) {
      const int other = groups[i / kLanes].action[i % kLanes];
      if (scores[i / kLanes][i % kLanes] == score && other < action) action = other, place = i;
    }
    return place;
  }

  // The natural logarithm of a positive number; the result is up to 0.7 too small.
  static float rough_log(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return (static_cast<float>(bits >> 23) - 127.0f) * 0.69314718f;
  }

  const Config config_;
  const std::vector<double> reciprocal_;
  std::vector<float> root_logits_;  // [B, A] logits minus the root's largest, -inf for illegal actions
};

}  // namespace efficientzero
