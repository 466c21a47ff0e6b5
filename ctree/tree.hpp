// A batch of search trees: one tree per root, all grown in lock step, one leaf per root per simulation.
//
// Nothing here knows Python. All memory is taken in the constructor. One arena is cut into equal blocks, one per node:
// a header, then rows of equal spacing
//   open[A]           prior of each action still open; -inf once it was visited, or if it may never be taken
//   u, q, n[C]        per visited child, in order of first visit: prior term, Q value, visits (n: Gumbel only)
//   child, action[C]  its slot and its action
// So a selection costs O(visited children), not O(A): all open actions share one Q value, hence the best of them is the
// one with the largest prior, which has to be looked up again only after an action was opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace efficientzero {

class ThreadPool;

enum class Policy { kPuct, kGumbel };

struct Config {
  int64_t num_roots = 1;
  int64_t num_actions = 1;
  int64_t num_simulations = 1;
  Policy policy = Policy::kPuct;
  double discount = 1.0;
  double pb_c_init = 1.25;
  double pb_c_base = 19652.0;
  double value_delta_max = 0.01;
  int64_t horizon = 5;
  bool uniform_first_visit = true;
  bool random_ties = true;
  int64_t max_considered_actions = 16;
  double c_visit = 50.0;
  double c_scale = 0.1;
  double min_q_range = 1e-8;
  int64_t num_threads = 1;
  int64_t first_root = 0;  // number of the first root in a larger batch: a root's random numbers follow from its number
  uint64_t seed = 0;
};

// What a search starts from; null where not given. Shapes: value [B], all others [B, A].
struct RootInput {
  const float* logits = nullptr;
  const float* value = nullptr;
  const uint8_t* legal = nullptr;
  const float* noise = nullptr;
  double noise_fraction = 0.25;
  const float* gumbel = nullptr;
};

// Columns of node_table(), one entry per node, the root first and then the nodes in the order they were made.
struct NodeTable {
  int32_t *parent, *action, *depth, *visits;
  float *value, *reward, *prior;
};

// Throws std::invalid_argument for bad values and std::runtime_error for calls out of order. A call that throws has
// changed nothing, so it may be repeated with good arguments.
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
  int simulation() const { return simulation_; }
  size_t nbytes() const;

 private:
  enum class Stage { kNew, kReady, kSelected };
  struct Node;
  struct Root;
  struct Block;  // one node's header and rows

  Block block(int root, int slot) const;
  void prefetch(int root) const;
  template <typename Task>
  void for_each_root(const Task& task);
  void check_reset(const RootInput& input) const;
  void check_network(const float* value_prefix, const float* value, const float* logits) const;
  void require_reset() const;

  void reset_root(int root, const RootInput& input);
  void prepare(const Block& node, bool is_root) const;
  template <Policy policy>
  void select_leaf(int root, float* scratch);
  template <Policy policy>
  void expand(int root, float value_prefix, float value, const float* logits);
  template <Policy policy>
  void backup(int root, int slot, double value);
  void rescan_bounds(int root);

  int puct_pick(const Block& node, Root& root, bool is_root, float* scores) const;
  int gumbel_root_pick(const Block& node, Root& root) const;
  int gumbel_interior_pick(const Block& node, float* scratch) const;

  Config config_;
  size_t padded_actions_, max_children_;  // lengths of the rows, multiples of 4
  size_t stride_;                         // bytes of a block
  size_t arena_bytes_, bounds_stride_;
  std::unique_ptr<std::byte[]> arena_;
  std::vector<Root> roots_;
  std::vector<float> edge_q_;        // [B, padded N+1] Q of the edge into each node, NaN where there is no node
  std::vector<float> root_logits_;   // [B, A] less the maximum, -inf where illegal (Gumbel only)
  std::vector<float> exploration_;   // [N+1] pUCT factor of a node whose children have n visits together
  std::vector<double> reciprocal_;   // 1/n
  std::vector<float> scratch_;       // [num_threads, padded C]
  std::unique_ptr<ThreadPool> pool_;
  Stage stage_ = Stage::kNew;
  int simulation_ = 0;
};

}  // namespace efficientzero
