// The memory of the trees: one allocation, made once, for nodes, groups of visited children and rows of actions.
//
// Data that is written together is adjacent: each array is ordered by simulation, then by root. A node's visited
// children are in groups of four, in the order of their first visit. When a node's groups are full they are moved to
// new ones, twice as many. With N simulations that needs fewer than N groups per root, since a node with c children has
// used fewer than c new groups.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "rows.hpp"

namespace efficientzero {

constexpr size_t kCacheLine = 64;

inline int num_groups(int children) { return (children + kLanes - 1) / kLanes; }

// 1 / n for n < count, and 1 for 0.
inline std::vector<double> reciprocals(size_t count) {
  std::vector<double> table;
  for (size_t n = 0; n < count; ++n) table.push_back(1.0 / std::max<double>(n, 1.0));
  return table;
}

// The kind of step that the next descent through a node has to take.
enum class State : uint8_t {
  kFresh,   // it has no child, and the first action is chosen without weights
  kLogits,  // its row must be turned from logits into weights first
  kNarrow,  // it has at most one group of children
  kWide     // it has more groups of children
};

// The part of a node that both policies need. 16 bits suffice, as there are at most 65,534 simulations.
struct NodeBase {
  double value_sum = 0.0;
  double weighted_q = 0.0;             // over visited children: sum of Q (pUCT), of weight * Q (Gumbel)
  float reward = 0.0f, weight = 0.0f;  // of the edge into this node; the weight is that of the parent's row
  float value_prefix = 0.0f;
  uint32_t group = 0;                  // the first group of its children
  uint16_t children = 0;               // number of visited children
  uint16_t visits = 1, parent = 0, depth = 0;
  uint16_t edge = 0;  // its place among the parent's visited children
  State state = State::kFresh;
  bool has_weights = false;  // the row no longer holds logits
};

inline void prefetch_lines(const void* from, int lines) {
  for (int i = 0; i < lines; ++i) __builtin_prefetch(static_cast<const char*>(from) + i * kCacheLine);
}

// Pointers to all trees of a batch. Each block has a copy of them, which no store into the trees can alias.
template <typename NodeType, typename GroupType>
struct Trees {
  using Node = NodeType;
  using Group = GroupType;

  Node* nodes;    // [N + 1, B]
  Group* groups;  // [N + 1, B] first groups, then [B, N] for nodes that need more
  float* rows;    // [N + 1, B, padded A]
  size_t num_roots, num_simulations, padded_actions;

  size_t at(size_t root, size_t slot) const { return slot * num_roots + root; }
  Node& node(size_t root, size_t slot) const { return nodes[at(root, slot)]; }
  float* row(size_t root, size_t slot) const { return rows + at(root, slot) * padded_actions; }
  Group* groups_of(const Node& node) const { return groups + node.group; }
  Group& group_of(const Node& node, int place) const { return groups[node.group + place / kLanes]; }

  void prefetch(size_t root, size_t slot) const {
    __builtin_prefetch(nodes + at(root, slot));
    __builtin_prefetch(groups + at(root, slot));
  }

  Node& make_node(size_t root, size_t slot) const {
    Node& node = nodes[at(root, slot)] = Node{};
    node.group = static_cast<uint32_t>(at(root, slot));
    return node;
  }

  // Makes room for one more child of a node. Returns its place.
  int add_child(size_t root, Node& node, uint16_t& groups_moved_to) const {
    const int place = node.children++, full = place / kLanes;
    if (place % kLanes != 0) return place;
    if (full > 0 && (full & (full - 1)) == 0) {
      const Group* from = groups_of(node);
      node.group = static_cast<uint32_t>(at(0, num_simulations + 1) + root * num_simulations + groups_moved_to);
      groups_moved_to = static_cast<uint16_t>(groups_moved_to + 2 * full);
      std::copy_n(from, full, groups_of(node));
    }
    groups_of(node)[full] = Group{};
    return place;
  }
};

// Owns the memory of trees.
template <typename Trees>
class Storage {
 public:
  // Throws std::bad_alloc.
  Storage(size_t num_roots, size_t num_actions, size_t num_simulations) {
    using Node = typename Trees::Node;
    using Group = typename Trees::Group;
    static_assert(sizeof(Node) == kCacheLine && alignof(Node) == kCacheLine, "a node should fill one cache line");
    const size_t nodes = num_roots * (num_simulations + 1), groups = nodes + num_roots * num_simulations;
    if (groups > UINT32_MAX) throw std::bad_alloc();
    trees_.num_roots = num_roots, trees_.num_simulations = num_simulations, trees_.padded_actions = pad(num_actions);
    nbytes_ = nodes * (sizeof(Node) + trees_.padded_actions * sizeof(float)) + groups * sizeof(Group);
    // Not initialised: nodes, groups and rows are written before use. (The sanitizers abort in a `new` that may throw.)
    memory_.reset(static_cast<std::byte*>(::operator new(nbytes_, std::align_val_t{kCacheLine}, std::nothrow)));
    if (!memory_) throw std::bad_alloc();
    trees_.nodes = reinterpret_cast<Node*>(memory_.get());
    trees_.groups = reinterpret_cast<Group*>(trees_.nodes + nodes);
    trees_.rows = reinterpret_cast<float*>(trees_.groups + groups);
  }

  const Trees& trees() const { return trees_; }
  size_t nbytes() const { return nbytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, std::align_val_t{kCacheLine}); }
  };

  size_t nbytes_;
  std::unique_ptr<std::byte, Free> memory_;
  Trees trees_;
};

}  // namespace efficientzero
