#include "tree.hpp"

#include <stdexcept>
#include <string>

#include "checks.hpp"
#include "forest.hpp"
#include "gumbel.hpp"
#include "puct.hpp"

namespace efficientzero {
namespace {

const Config& checked(const Config& config) {
  check_config(config);
  return config;
}

}  // namespace

BatchedTree::BatchedTree(const Config& config) : config_(checked(config)) {
  if (config.policy == Policy::kPuct) {
    forest_ = std::make_unique<ForestOf<Puct>>(config);
  } else {
    forest_ = std::make_unique<ForestOf<Gumbel>>(config);
  }
}

BatchedTree::~BatchedTree() = default;

void BatchedTree::reseed(uint64_t seed) { forest_->reseed(seed); }

void BatchedTree::reset(const RootInput& input) {
  check_roots(config_, input);
  forest_->reset(input);
  stage_ = Stage::kReady;
}

void BatchedTree::select(int32_t* parent_slot, int32_t* action, int32_t* depth) {
  forest();
  if (stage_ == Stage::kSelected) {
    throw std::runtime_error("select() was already called: expand_and_backup() has to come first");
  }
  if (simulation() == config_.num_simulations) {
    throw std::runtime_error("all " + std::to_string(simulation()) + " simulations are done: call reset() first");
  }
  forest_->select(parent_slot, action, depth);
  stage_ = Stage::kSelected;
}

void BatchedTree::expand_and_backup(const float* value_prefix, const float* value, const float* logits) {
  forest();
  if (stage_ != Stage::kSelected) throw std::runtime_error("expand_and_backup() needs a leaf: call select() first");
  const LeafInput input{value_prefix, value, logits};
  if (!forest_->expand_and_backup(input)) return check_leaves(config_, input);
  stage_ = Stage::kReady;
}

const Forest& BatchedTree::forest() const {
  if (stage_ == Stage::kNew) throw std::runtime_error("the tree has no roots yet: call reset() first");
  return *forest_;
}

void BatchedTree::visit_counts(int32_t* out) const { forest().visit_counts(out); }
void BatchedTree::root_values(float* out) const { forest().root_values(out); }
void BatchedTree::qvalues(float* out) const { forest().qvalues(out); }
void BatchedTree::improved_policy(float* out) const { forest().improved_policy(out); }
void BatchedTree::selected_actions(int32_t* out) const { forest().selected_actions(out); }

void BatchedTree::node_table(int64_t root, const NodeTable& out) const {
  const Forest& trees = forest();
  check_range("root", root, 0, config_.num_roots - 1);
  trees.node_table(static_cast<size_t>(root), out);
}

int BatchedTree::simulation() const { return forest_->simulation(); }
size_t BatchedTree::nbytes() const { return forest_->nbytes(); }

}  // namespace efficientzero
