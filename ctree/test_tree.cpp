// Random searches of both policies without Python, to be built with -fsanitize=address,undefined or =thread.
// Deterministic. Ends with 1 and a message at the first broken invariant.
//
//   g++ -std=c++17 -O1 -g -pthread -fsanitize=address,undefined -fno-sanitize-recover=all ctree/test_tree.cpp
//       ctree/checks.cpp ctree/tree.cpp -o test_tree && ./test_tree [number of trees]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <stdexcept>
#include <vector>

#include "tree.hpp"

using efficientzero::BatchedTree;
using efficientzero::Config;
using efficientzero::NodeTable;
using efficientzero::Policy;
using efficientzero::RootInput;

namespace {

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: broken: %s\n", __FILE__, __LINE__, #condition);   \
      std::exit(1);                                                                  \
    }                                                                                \
  } while (false)

using Rng = std::mt19937_64;

// Not a std:: distribution: those may differ from one standard library to the next.
int below(Rng& rng, int count) { return static_cast<int>(rng() % static_cast<uint64_t>(count)); }
float uniform(Rng& rng, float low, float high) { return low + (high - low) * static_cast<float>(rng() >> 40) / (1 << 24); }

std::vector<float> floats(Rng& rng, size_t count, float low, float high) {
  std::vector<float> values(count);
  for (float& value : values) value = uniform(rng, low, high);
  return values;
}

// Exactly as long as they have to be, so that a read past the end is seen.
struct Inputs {
  std::vector<float> logits, value, noise, gumbel;
  std::vector<uint8_t> legal;
};

Config random_config(Rng& rng) {
  static const int kActions[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 18, 33, 125, 400};
  static const int kSimulations[] = {0, 1, 2, 3, 4, 5, 16, 31, 50, 120};
  Config config;
  config.num_roots = 1 + below(rng, 8);
  config.num_actions = kActions[below(rng, 13)];
  config.num_simulations = kSimulations[below(rng, 10)];
  config.policy = below(rng, 2) ? Policy::kGumbel : Policy::kPuct;
  config.discount = below(rng, 2) ? 0.997 : 1.0;
  config.value_delta_max = below(rng, 2) ? 0.01 : 0.0;
  config.horizon = 1 + below(rng, 5);
  config.uniform_first_visit = below(rng, 2);
  config.random_ties = below(rng, 2);
  config.max_considered_actions = 1 + below(rng, 20);
  config.num_threads = below(rng, 8) ? 1 : 3;
  config.seed = rng();
  return config;
}

Inputs random_inputs(Rng& rng, const Config& config) {
  const size_t cells = config.num_roots * config.num_actions;
  Inputs inputs;
  // Flat logits and values make all scores tie.
  const float spread = below(rng, 3) ? 3.0f : 0.0f;
  inputs.logits = floats(rng, cells, -spread, spread);
  if (config.policy == Policy::kGumbel || below(rng, 2)) inputs.value = floats(rng, config.num_roots, -1, 1);
  if (config.policy == Policy::kGumbel && below(rng, 2)) inputs.gumbel = floats(rng, cells, -2, 5);
  if (config.policy == Policy::kPuct && below(rng, 2)) inputs.noise = floats(rng, cells, 0.01f, 1);
  if (below(rng, 2)) {
    for (size_t i = 0; i < cells; ++i) inputs.legal.push_back(static_cast<uint8_t>(below(rng, 2)));
    for (int root = 0; root < config.num_roots; ++root) {
      inputs.legal[root * config.num_actions + below(rng, static_cast<int>(config.num_actions))] = 1;
    }
  }
  return inputs;
}

RootInput as_input(const Inputs& inputs) {
  RootInput input;
  input.logits = inputs.logits.data();
  if (!inputs.value.empty()) input.value = inputs.value.data();
  if (!inputs.legal.empty()) input.legal = inputs.legal.data();
  if (!inputs.noise.empty()) input.noise = inputs.noise.data();
  if (!inputs.gumbel.empty()) input.gumbel = inputs.gumbel.data();
  return input;
}

void run_search(BatchedTree& tree, const Inputs& inputs, Rng& rng) {
  const Config& config = tree.config();
  const size_t roots = config.num_roots, cells = roots * config.num_actions;
  const float spread = below(rng, 3) ? 2.0f : 0.0f;
  std::vector<int32_t> slot(roots), action(roots), depth(roots);
  tree.reset(as_input(inputs));
  for (int simulation = 0; simulation < config.num_simulations; ++simulation) {
    tree.select(slot.data(), action.data(), depth.data());
    for (size_t root = 0; root < roots; ++root) {
      CHECK(slot[root] >= 0 && slot[root] <= simulation);
      CHECK(action[root] >= 0 && action[root] < config.num_actions);
      CHECK(depth[root] >= 1 && depth[root] <= simulation + 1);
      CHECK(slot[root] != 0 || inputs.legal.empty() || inputs.legal[root * config.num_actions + action[root]]);
    }
    const auto prefix = floats(rng, roots, -spread, spread), value = floats(rng, roots, -spread, spread);
    auto logits = floats(rng, cells, -spread, spread);
    if (config.num_actions > 1 && below(rng, 4) == 0) logits[below(rng, static_cast<int>(cells))] = -INFINITY;
    tree.expand_and_backup(prefix.data(), value.data(), logits.data());
  }
}

void check_results(const BatchedTree& tree, const Inputs& inputs) {
  const Config& config = tree.config();
  const size_t roots = config.num_roots, actions = config.num_actions, cells = roots * actions;
  std::vector<int32_t> visits(cells), best(roots);
  std::vector<float> values(roots), qvalues(cells), policy(cells);
  tree.visit_counts(visits.data());
  tree.selected_actions(best.data());
  tree.root_values(values.data());
  tree.qvalues(qvalues.data());
  tree.improved_policy(policy.data());
  for (size_t root = 0; root < roots; ++root) {
    int64_t total = 0;
    double mass = 0.0;
    for (size_t cell = root * actions; cell < (root + 1) * actions; ++cell) {
      total += visits[cell];
      mass += policy[cell];
      CHECK(std::isfinite(qvalues[cell]) && policy[cell] >= 0.0f);
      CHECK(inputs.legal.empty() || inputs.legal[cell] || (visits[cell] == 0 && policy[cell] == 0.0f));
    }
    CHECK(total == config.num_simulations);
    CHECK(std::fabs(mass - 1.0) < 1e-4);
    CHECK(std::isfinite(values[root]));
    CHECK(best[root] >= 0 && best[root] < config.num_actions);
    CHECK(inputs.legal.empty() || inputs.legal[root * actions + best[root]]);
  }
}

// Each node's visits are 1 + those of its children, its parent comes before it, no edge is taken twice.
void check_nodes(const BatchedTree& tree, int root) {
  const size_t nodes = tree.simulation() + 1, actions = tree.config().num_actions;
  std::vector<int32_t> parent(nodes), action(nodes), depth(nodes), visits(nodes);
  std::vector<float> value(nodes), reward(nodes), prior(nodes);
  tree.node_table(root, NodeTable{parent.data(), action.data(), depth.data(), visits.data(), value.data(),
                                  reward.data(), prior.data()});
  std::vector<int64_t> below_it(nodes, 0);
  std::vector<bool> taken(nodes * actions, false);
  for (size_t slot = nodes; slot-- > 1;) {
    CHECK(parent[slot] >= 0 && parent[slot] < static_cast<int>(slot));
    CHECK(depth[slot] == depth[parent[slot]] + 1);
    CHECK(visits[slot] == 1 + below_it[slot]);
    CHECK(prior[slot] >= 0.0f && prior[slot] <= 1.0001f && std::isfinite(value[slot]) && std::isfinite(reward[slot]));
    CHECK(!taken[parent[slot] * actions + action[slot]]);
    taken[parent[slot] * actions + action[slot]] = true;
    below_it[parent[slot]] += visits[slot];
  }
  CHECK(visits[0] == 1 + below_it[0]);
}

void check_random_trees(int count) {
  Rng rng(20260101);
  for (int done = 0; done < count;) {
    const Config config = random_config(rng);
    BatchedTree tree(config);
    for (int search = 0; search < 2; ++search) {  // The second search finds the memory of the first.
      const Inputs inputs = random_inputs(rng, config);
      run_search(tree, inputs, rng);
      check_results(tree, inputs);
      for (int root = 0; root < config.num_roots; ++root) check_nodes(tree, root);
    }
    done += static_cast<int>(config.num_roots) * 2;
  }
}

void check_threads_change_nothing() {
  std::vector<int32_t> results[2];
  for (int i = 0; i < 2; ++i) {
    Config config;
    config.num_roots = 67, config.num_actions = 6, config.num_simulations = 40, config.num_threads = i == 0 ? 1 : 4;
    BatchedTree tree(config);
    Rng rng(5);
    Inputs inputs;
    inputs.logits = floats(rng, 67 * 6, -1, 1);
    run_search(tree, inputs, rng);
    results[i].resize(67 * 6);
    tree.visit_counts(results[i].data());
  }
  CHECK(results[0] == results[1]);
}

template <typename Error>
bool throws(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error&) {
    return true;
  }
  return false;
}

void check_misuse() {
  Config config;
  config.num_roots = 0;
  CHECK(throws<std::invalid_argument>([&] { BatchedTree tree(config); }));
  config.num_roots = 1, config.num_actions = 2;
  BatchedTree tree(config);
  int32_t slot, action, depth;
  const float zero = 0.0f, bad = NAN, logits[] = {0.0f, 0.0f};
  CHECK(throws<std::runtime_error>([&] { tree.select(&slot, &action, &depth); }));
  RootInput input;
  input.logits = logits;
  tree.reset(input);
  CHECK(throws<std::runtime_error>([&] { tree.expand_and_backup(&zero, &zero, logits); }));
  tree.select(&slot, &action, &depth);
  CHECK(throws<std::invalid_argument>([&] { tree.expand_and_backup(&zero, &bad, logits); }));
  tree.expand_and_backup(&zero, &zero, logits);
  CHECK(throws<std::runtime_error>([&] { tree.select(&slot, &action, &depth); }));
}

}  // namespace

int main(int argc, char** argv) {
  check_misuse();
  check_threads_change_nothing();
  check_random_trees(argc > 1 ? std::atoi(argv[1]) : 1000);
  return 0;
}
