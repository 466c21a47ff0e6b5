// Grows trees: reset, leaves, backup and descent, for one block of roots at a time. The template parameter Rules, which
// is Puct or Gumbel, has what differs between the policies.
//
// The CPU cannot predict which kind of step a root's descent takes next, or whether it ends. So all roots of a block
// descend together, level by level: instead of a branch per root, roots are sorted into lists by the kind of their next
// step. Meanwhile the nodes of the next level are prefetched from memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "config.hpp"
#include "storage.hpp"

namespace efficientzero {

template <typename Rules>
struct Batch {
  using AllTrees = typename Rules::AllTrees;

  explicit Batch(const Config& given)
      : config(given),
        storage(given.num_roots, given.num_actions, given.num_simulations),
        rules(given),
        roots(given.num_roots),
        leaf_parent(given.num_roots),
        leaf_action(given.num_roots),
        leaf_depth(given.num_roots) {
    for (int64_t depth = 0; depth <= given.num_simulations; ++depth) {
      prefix_continues.push_back(depth > 0 && depth % given.horizon == 0 ? 0.0f : 1.0f);
    }
  }

  size_t nbytes() const {
    return storage.nbytes() + rules.nbytes() + roots.size() * (sizeof(typename Rules::Root) + 3 * sizeof(int32_t)) +
           prefix_continues.size() * sizeof(float);
  }

  const Config config;
  Storage<AllTrees> storage;  // By far the largest; first, so that it fails before anything else is allocated.
  Rules rules;
  std::vector<typename Rules::Root> roots;
  std::vector<int32_t> leaf_parent, leaf_action, leaf_depth;  // of the next simulation
  std::vector<float> prefix_continues;  // [N + 1] by depth: 0 if value prefixes start anew in the children, else 1
  int simulation = 0;
};

template <typename Rules>
class Block {
 public:
  static constexpr int kMost = 32;  // Roots per block: enough to be worth sorting, few enough for the L1 cache.

  // `scratch` [groups of the widest node] is overwritten.
  Block(Batch<Rules>& batch, int first, int count, Float4* scratch)
      : batch_(batch), trees_(batch.storage.trees()), first_(first), count_(count), scratch_(scratch) {}

  void reset(const RootInput& input) {
    const size_t actions = batch_.config.num_actions;
    for (size_t index = first_; index < end(); ++index) {
      Node& node = trees_.make_node(index, 0);
      *trees_.groups_of(node) = Group{};
      float* row = trees_.row(index, 0);
      std::fill_n(row, trees_.padded_actions, -kInfinity);
      for (size_t a = 0; a < actions; ++a) {
        if (input.legal == nullptr || input.legal[index * actions + a]) row[a] = input.logits[index * actions + a];
      }
      node.has_weights = true;
      if (input.value != nullptr) node.value_sum = input.value[index];
      batch_.roots[index].groups_moved_to = 0;
      batch_.rules.reset(trees_, index, batch_.roots[index], input);
    }
  }

  // Writes those parts of the leaves' nodes that do not depend on the trees. No other node refers to them yet, so this
  // may be repeated. False if an input is not finite.
  bool make_leaves(const LeafInput& input) const {
    const size_t slot = batch_.simulation + 1, actions = batch_.config.num_actions;
    bool valid = true;
    for (size_t index = first_; index < end(); ++index) {
      Node& node = trees_.make_node(index, slot);
      const float value = input.value[index], value_prefix = input.value_prefix[index];
      const LogitsFound logits = store_logits(input.logits + index * actions, actions, trees_.row(index, slot));
      node.value_sum = value;
      node.value_prefix = value_prefix;
      batch_.rules.make_leaf(node, value, logits);
      valid &= logits.valid & (std::fabs(value) <= kLargestValue) & (std::fabs(value_prefix) <= kLargestValue);
    }
    return valid;
  }

  // Makes the leaves children of their parents.
  void link_leaves() {
    const int slot = batch_.simulation + 1;
    for (size_t index = first_; index < end(); ++index) {
      const int parent_slot = batch_.leaf_parent[index], action = batch_.leaf_action[index];
      Root& root = batch_.roots[index];
      Node &parent = trees_.node(index, parent_slot), &node = trees_.node(index, slot);
      const int place = trees_.add_child(index, parent, root.groups_moved_to);
      Group& group = trees_.group_of(parent, place);
      group.child[place % kLanes] = static_cast<uint16_t>(slot);
      group.action[place % kLanes] = static_cast<uint16_t>(action);
      node.parent = static_cast<uint16_t>(parent_slot);
      node.edge = static_cast<uint16_t>(place);
      node.depth = static_cast<uint16_t>(batch_.leaf_depth[index]);
      // EfficientZero App. A: the LSTM is reset every `horizon` steps, and with it the sum of rewards that it predicts.
      node.reward = node.value_prefix - batch_.prefix_continues[parent.depth] * parent.value_prefix;
      if (parent.has_weights) {
        batch_.rules.close_action(trees_, index, root, parent, node, action, trees_.row(index, parent_slot));
        parent.state = place < kLanes ? State::kNarrow : State::kWide;
      } else {
        parent.state = State::kLogits;
      }
    }
  }

  // Adds the leaves' values to all their ancestors.
  void backup() {
    struct Ascent {
      Node* node;
      double value;
      int slot;
    } ascents[kMost];
    const int leaf_slot = batch_.simulation + 1;
    int active[kMost], num_active = count_;
    for (int i = 0; i < count_; ++i) {
      Node& leaf = trees_.node(first_ + i, leaf_slot);
      ascents[i] = {&leaf, leaf.value_sum, leaf_slot};
      active[i] = i;
    }
    while (num_active > 0) {
      int num_below_root = 0;
      for (int j = 0; j < num_active; ++j) {
        const int i = active[j];
        const size_t index = first_ + i;
        Ascent& ascent = ascents[i];
        const Node& node = *ascent.node;
        Node& parent = trees_.node(index, node.parent);
        const double mean = node.value_sum * batch_.rules.reciprocal(node.visits);
        const float q = static_cast<float>(node.reward + batch_.config.discount * mean);
        Group& group = trees_.group_of(parent, node.edge);
        batch_.rules.update_edge(parent, group, node, q, index, ascent.slot, batch_.roots[index]);
        const double value = node.reward + batch_.config.discount * ascent.value;
        parent.value_sum += value;
        ++parent.visits;
        ascent = {&parent, value, node.parent};
        active[num_below_root] = i;
        num_below_root += ascent.slot != 0;
      }
      num_active = num_below_root;
    }
    for (size_t index = first_; index < end(); ++index) {
      batch_.rules.end_backup(index, batch_.roots[index], leaf_slot);
    }
  }

  // Finds the leaves of the next simulation.
  void descend() {
    for (int i = 0; i < count_; ++i) {
      descents_[i].node = &trees_.node(first_ + i, 0);
      descents_[i].slot = 0;
      by_state_[batch_.rules.begin_descent(descents_[i], batch_.roots[first_ + i])].add(i);
    }
    for (bool is_root = true;; is_root = false) {
      pick(is_root);
      if (picked_child_[true].empty()) return;
      to_next_level();
    }
  }

 private:
  using Node = typename Rules::Node;
  using Group = typename Rules::Group;
  using Root = typename Rules::Root;
  using Descent = typename Rules::Descent;

  // A list of roots, by their indices in the block.
  class List {
   public:
    void add(int root) { roots_[size_++] = root; }
    void clear() { size_ = 0; }
    bool empty() const { return size_ == 0; }
    const int* begin() const { return roots_; }
    const int* end() const { return roots_ + size_; }

   private:
    int size_ = 0;
    int roots_[kMost];
  };
  template <typename Key, int kKeys>
  class Lists {
   public:
    List& operator[](Key key) { return lists_[static_cast<int>(key)]; }
    void clear() {
      for (List& list : lists_) list.clear();
    }

   private:
    List lists_[kKeys];
  };

  size_t end() const { return first_ + count_; }
  float* row(int i) const { return trees_.row(first_ + i, descents_[i].slot); }

  // Chooses an action at the current node of each root whose descent has not ended.
  void pick(bool is_root) {
    for (int i : by_state_[State::kFresh]) {
      end_at(i, batch_.rules.first_action(trees_, *descents_[i].node, row(i), batch_.roots[first_ + i]));
    }
    for (int i : by_state_[State::kLogits]) {
      Node& node = *descents_[i].node;
      batch_.rules.weigh_row(trees_, first_ + i, node, row(i));
      node.has_weights = true;
      node.state = State::kNarrow;
      by_state_[State::kNarrow].add(i);
    }
    for (int i : by_state_[State::kNarrow]) {
      const bool child = batch_.rules.template pick_child<false>(trees_, first_ + i, descents_[i], is_root, scratch_);
      picked_child_[child].add(i);
    }
    for (int i : by_state_[State::kWide]) {
      const bool child = batch_.rules.template pick_child<true>(trees_, first_ + i, descents_[i], is_root, scratch_);
      picked_child_[child].add(i);
    }
    for (int i : picked_child_[false]) {
      const int action = batch_.rules.pick_other(trees_, descents_[i], row(i), batch_.roots[first_ + i]);
      if (action < 0) {
        picked_child_[true].add(i);
      } else {
        end_at(i, action);
      }
    }
  }

  void end_at(int i, int action) {
    batch_.leaf_parent[first_ + i] = descents_[i].slot;
    batch_.leaf_action[first_ + i] = action;
    batch_.leaf_depth[first_ + i] = descents_[i].node->depth + 1;
  }

  void to_next_level() {
    for (int i : picked_child_[true]) {
      Descent& descent = descents_[i];
      descent.slot = trees_.group_of(*descent.node, descent.place).child[descent.place % kLanes];
      descent.node = &trees_.node(first_ + i, descent.slot);
      trees_.prefetch(first_ + i, descent.slot);
    }
    by_state_.clear();
    for (int i : picked_child_[true]) by_state_[descents_[i].node->state].add(i);
    picked_child_.clear();
    // The nodes have arrived and say what else will be read.
    for (int i : by_state_[State::kLogits]) prefetch_lines(row(i), 2);
    for (int i : by_state_[State::kWide]) prefetch_lines(trees_.groups_of(*descents_[i].node), 3);
  }

  Batch<Rules>& batch_;
  const typename Rules::AllTrees trees_;
  const size_t first_;
  const int count_;
  Float4* const scratch_;
  Descent descents_[kMost];
  Lists<State, 4> by_state_;
  Lists<bool, 2> picked_child_;
};

}  // namespace efficientzero
