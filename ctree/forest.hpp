// All trees of a batch, which grow by the rules of one policy.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "block.hpp"
#include "thread_pool.hpp"

namespace efficientzero {

class Forest {
 public:
  virtual ~Forest() = default;
  virtual void reseed(uint64_t seed) = 0;
  virtual void reset(const RootInput& input) = 0;
  virtual void select(int32_t* parent_slot, int32_t* action, int32_t* depth) = 0;
  // Returns false and changes nothing if an input is not finite.
  virtual bool expand_and_backup(const LeafInput& input) = 0;
  virtual int simulation() const = 0;
  virtual size_t nbytes() const = 0;

  virtual void visit_counts(int32_t* out) const = 0;
  virtual void root_values(float* out) const = 0;
  virtual void qvalues(float* out) const = 0;
  virtual void improved_policy(float* out) const = 0;
  virtual void selected_actions(int32_t* out) const = 0;
  virtual void node_table(size_t root, const NodeTable& out) const = 0;
};

// Rules is Puct or Gumbel.
template <typename Rules>
class ForestOf final : public Forest {
 public:
  explicit ForestOf(const Config& config) : batch_(config) {
    const int threads = static_cast<int>(std::min(config.num_threads, config.num_roots));
    const int most_children = static_cast<int>(std::min(config.num_actions, config.num_simulations));
    for (int i = 0; i < threads; ++i) scratch_.emplace_back(num_groups(most_children));
    if (threads > 1) pool_ = std::make_unique<ThreadPool>(threads);
    reseed(config.seed);
  }

  ~ForestOf() override {
    if (pool_ && !pool_->has_threads()) (void)pool_.release();
  }

  void reseed(uint64_t seed) override {
    for (size_t index = 0; index < batch_.roots.size(); ++index) {
      batch_.rules.reseed(index, batch_.roots[index], seed);
    }
  }

  int simulation() const override { return batch_.simulation; }

  size_t nbytes() const override {
    size_t scratch = 0;
    for (const auto& scores : scratch_) scratch += scores.size() * sizeof(Float4);
    return batch_.nbytes() + scratch;
  }

  void reset(const RootInput& input) override {
    for_each_block([&](auto&& block) { block.reset(input); });
    batch_.simulation = 0;
    has_leaves_ = false;
  }

  void select(int32_t* parent_slot, int32_t* action, int32_t* depth) override {
    if (!has_leaves_) for_each_block([](auto&& block) { block.descend(); });
    has_leaves_ = true;
    std::copy(batch_.leaf_parent.begin(), batch_.leaf_parent.end(), parent_slot);
    std::copy(batch_.leaf_action.begin(), batch_.leaf_action.end(), action);
    std::copy(batch_.leaf_depth.begin(), batch_.leaf_depth.end(), depth);
  }

  bool expand_and_backup(const LeafInput& input) override {
    std::atomic<bool> valid{true};
    for_each_block([&](auto&& block) {
      if (!block.make_leaves(input)) valid = false;
    });
    if (!valid) return false;
    // The next descent follows at once, while the nodes are in the cache.
    has_leaves_ = batch_.simulation + 1 < batch_.config.num_simulations;
    for_each_block([&](auto&& block) {
      block.link_leaves();
      block.backup();
      if (has_leaves_) block.descend();
    });
    ++batch_.simulation;
    return true;
  }

  void visit_counts(int32_t* out) const override {
    std::fill_n(out, num_roots() * num_actions(), 0);
    for_each_root_child([&](size_t index, const Node& child, const Group&, int, int action) {
      out[index * num_actions() + action] = child.visits;
    });
  }

  void root_values(float* out) const override {
    for (size_t index = 0; index < num_roots(); ++index) out[index] = mean_value(trees().node(index, 0));
  }

  void qvalues(float* out) const override {
    for (size_t index = 0; index < num_roots(); ++index) {
      const float unvisited_q = batch_.rules.unvisited_q(trees(), trees().node(index, 0));
      std::fill_n(out + index * num_actions(), num_actions(), unvisited_q);
    }
    for_each_root_child([&](size_t index, const Node&, const Group& group, int lane, int action) {
      out[index * num_actions() + action] = group.q[lane];
    });
  }

  void improved_policy(float* out) const override {
    for (size_t index = 0; index < num_roots(); ++index) {
      batch_.rules.improved_policy(trees(), index, out + index * num_actions());
    }
  }

  void selected_actions(int32_t* out) const override {
    for (size_t index = 0; index < num_roots(); ++index) {
      const Node& node = trees().node(index, 0);
      if (node.children == 0) {
        out[index] = first_best(trees().row(index, 0), trees().padded_actions);
      } else {
        const int place = batch_.rules.final_place(trees(), index, node);
        out[index] = trees().group_of(node, place).action[place % kLanes];
      }
    }
  }

  void node_table(size_t root, const NodeTable& out) const override {
    for (int slot = 0; slot <= batch_.simulation; ++slot) {
      const Node& node = trees().node(root, slot);
      out.parent[slot] = slot == 0 ? -1 : node.parent;
      out.action[slot] = slot == 0 ? -1 : action_into(root, node);
      out.depth[slot] = node.depth;
      out.visits[slot] = node.visits;
      out.value[slot] = mean_value(node);
      out.reward[slot] = node.reward;
      out.prior[slot] = slot == 0 ? 1.0f : prior_of(root, node);
    }
  }

 private:
  using Node = typename Rules::Node;
  using Group = typename Rules::Group;

  const typename Rules::AllTrees& trees() const { return batch_.storage.trees(); }
  size_t num_roots() const { return batch_.roots.size(); }
  size_t num_actions() const { return batch_.config.num_actions; }

  template <typename Task>
  void for_each_block(const Task& task) {
    const auto share = [&](int begin, int end, int worker) {
      for (int first = begin; first < end; first += Block<Rules>::kMost) {
        task(Block<Rules>(batch_, first, std::min(end - first, Block<Rules>::kMost), scratch_[worker].data()));
      }
    };
    if (pool_) {
      pool_->run(static_cast<int>(num_roots()), share);
    } else {
      share(0, static_cast<int>(num_roots()), 0);
    }
  }

  template <typename Task>
  void for_each_root_child(const Task& task) const {
    for (size_t index = 0; index < num_roots(); ++index) {
      const Node& node = trees().node(index, 0);
      for (int place = 0; place < node.children; ++place) {
        const Group& group = trees().group_of(node, place);
        const int lane = place % kLanes;
        task(index, trees().node(index, group.child[lane]), group, lane, group.action[lane]);
      }
    }
  }

  static float mean_value(const Node& node) { return static_cast<float>(node.value_sum / node.visits); }

  int action_into(size_t root, const Node& node) const {
    return trees().group_of(trees().node(root, node.parent), node.edge).action[node.edge % kLanes];
  }

  float prior_of(size_t root, const Node& node) const {
    if (node.parent == 0) return node.weight;
    const Node& parent = trees().node(root, node.parent);
    const float* row = trees().row(root, node.parent);
    if (!parent.has_weights) {
      std::vector<float> logits(row, row + trees().padded_actions);
      const Weights weights = weigh(logits.data(), logits.size(), action_into(root, node));
      return weights.taken / (weights.taken + weights.open_sum);
    }
    float sum = open_sum(row, trees().padded_actions);
    for (int place = 0; place < parent.children; ++place) {
      sum += trees().node(root, trees().group_of(parent, place).child[place % kLanes]).weight;
    }
    return node.weight / sum;
  }

  Batch<Rules> batch_;
  std::vector<std::vector<Float4>> scratch_;  // [threads, groups of the widest node]
  std::unique_ptr<ThreadPool> pool_;
  bool has_leaves_ = false;  // the leaves of the next simulation were already found
};

}  // namespace efficientzero
