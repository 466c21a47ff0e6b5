// A batch of search trees: one tree per root, all grown in lock step, one leaf per root per simulation. Independent of
// Python. The constructor allocates all memory.
//
//   config.hpp            what goes in and out             rows.hpp, simd.hpp   mathematics on a node's actions
//   tree.cpp, checks.cpp  order of calls, good arguments   storage.hpp          where nodes lie in memory
//   forest.hpp            reset, descent, backup, results  puct.hpp, gumbel.hpp   the rules by which trees grow
#pragma once

#include <cstddef>
#include <memory>

#include "config.hpp"

namespace efficientzero {

class Forest;

// Throws std::invalid_argument for bad values and std::runtime_error for calls out of order. A call that throws changes
// nothing, so it may be repeated with valid arguments.
class BatchedTree {
 public:
  explicit BatchedTree(const Config& config);
  ~BatchedTree();
  BatchedTree(const BatchedTree&) = delete;
  BatchedTree& operator=(const BatchedTree&) = delete;

  void reseed(uint64_t seed);
  void reset(const RootInput& input);
  void select(int32_t* parent_slot, int32_t* action, int32_t* depth);
  void expand_and_backup(const float* value_prefix, const float* value, const float* logits);

  void visit_counts(int32_t* out) const;      // [B, A]
  void root_values(float* out) const;         // [B]
  void qvalues(float* out) const;             // [B, A]
  void improved_policy(float* out) const;     // [B, A]
  void selected_actions(int32_t* out) const;  // [B]
  void node_table(int64_t root, const NodeTable& out) const;

  const Config& config() const { return config_; }
  int simulation() const;
  size_t nbytes() const;

 private:
  enum class Stage { kNew, kReady, kSelected };

  const Forest& forest() const;  // Throws before the first reset.

  const Config config_;
  std::unique_ptr<Forest> forest_;
  Stage stage_ = Stage::kNew;
};

}  // namespace efficientzero
