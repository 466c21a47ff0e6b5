// Plain structures: the settings of a batch of trees, the inputs of a search, and the columns of its node table.
#pragma once

#include <cstdint>

namespace efficientzero {

constexpr float kLargestValue = 1e30f;  // Larger values and prefixes could overflow in a sum along a path.

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
  int64_t first_root = 0;  // index of the first root in a larger batch; a root's random numbers depend on its index
  uint64_t seed = 0;
};

// Inputs with which a search starts; null if not given. Shapes: value [B], all others [B, A].
struct RootInput {
  const float* logits = nullptr;
  const float* value = nullptr;
  const uint8_t* legal = nullptr;
  const float* noise = nullptr;
  double noise_fraction = 0.25;
  const float* gumbel = nullptr;
};

// The network's outputs for the leaves: value_prefix and value [B], logits [B, A].
struct LeafInput {
  const float* value_prefix;
  const float* value;
  const float* logits;
};

// Columns of node_table(), one entry per node: first the root, then the nodes in the order in which they were made.
struct NodeTable {
  int32_t *parent, *action, *depth, *visits;
  float *value, *reward, *prior;
};

}  // namespace efficientzero
